"""The names of volumes, for lists of what refers to volumes by their ids."""

from collections.abc import Collection, Mapping
from uuid import UUID

from domain.db.database import Database
from domain.volumes.repository import VolumeRepository


class VolumeNames:
    """The names of volumes, read for many at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, volume_ids: Collection[UUID], *, project_id: UUID) -> Mapping[UUID, str]:
        """Return the name of each of these volumes that exists in a project."""
        if not volume_ids:
            return {}
        async with self._database.transaction() as session:
            return await VolumeRepository(session).names(volume_ids, project_id)
