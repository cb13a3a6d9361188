"""Every question that is asked of the table of volumes, by name. Takes a session, never commits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import TableValuedAlias, Uuid, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from domain.database import given_rows
from domain.errors import NameTaken, VolumeNotFound
from domain.volumes.model import Volume
from domain.volumes.states import VolumeState


@dataclass(frozen=True)
class VolumeFilter:
    """Which volumes a list shows; None means any."""

    state: VolumeState | None = None
    name: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


class Ending(NamedTuple):
    """A volume that its job lets go of, with the size in bytes that it now has; None: as before."""

    volume_id: UUID
    job_id: UUID
    size: int | None


class VolumeRepository:
    """The table of volumes, seen from one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, volume: Volume) -> Volume:
        """Write a new volume.

        Raises:
            NameTaken: another volume has its name.
        """
        self._session.add(volume)
        await self._flush(volume)
        return volume

    async def get(self, volume_id: UUID) -> Volume:
        """Read one volume.

        Raises:
            VolumeNotFound: there is none.
        """
        volume = await self._session.get(Volume, volume_id)
        if volume is None:
            raise VolumeNotFound(volume_id)
        return volume

    async def lock(self, volume_id: UUID) -> Volume:
        """Read one volume and keep others from changing it.

        Raises:
            VolumeNotFound: there is none.
        """
        volume = await self._session.get(Volume, volume_id, with_for_update=True, populate_existing=True)
        if volume is None:
            raise VolumeNotFound(volume_id)
        return volume

    async def rename(self, volume: Volume, name: str) -> None:
        """Give a volume another name.

        Raises:
            NameTaken: another volume has it.
        """
        volume.name = name
        await self._flush(volume)

    async def page(self, wanted: VolumeFilter, *, before: UUID | None, limit: int) -> Sequence[Volume]:
        """Read ``limit`` volumes and one more, newest first."""
        query = select(Volume).order_by(Volume.id.desc()).limit(limit + 1)
        if wanted.state is not None:
            query = query.where(Volume.state == wanted.state)
        if wanted.name is not None:
            query = query.where(Volume.name == wanted.name)
        if wanted.labels:
            query = query.where(Volume.labels.contains(wanted.labels))
        if before is not None:
            query = query.where(Volume.id < before)
        return (await self._session.scalars(query)).all()

    async def let_go(self, endings: Sequence[Ending], state: VolumeState) -> Sequence[UUID]:
        """Bring volumes to rest in ``state`` at the end of the jobs that had them; returns which ones there were."""
        given = _given(endings)
        query = (
            update(Volume)
            .where(Volume.id == given.c.volume_id, Volume.job_id == given.c.job_id)
            .values(
                state=state,
                job_id=None,
                version=Volume.version + 1,
                size=func.coalesce(given.c.size, Volume.size),
                updated_at=func.now(),
            )
            .returning(Volume.id)
            .execution_options(synchronize_session=False)
        )
        return (await self._session.scalars(query)).all()

    async def remove(self, endings: Sequence[Ending]) -> Sequence[UUID]:
        """Strike off volumes that their jobs have deleted; returns which ones there were."""
        given = _given(endings)
        query = (
            delete(Volume)
            .where(Volume.id == given.c.volume_id, Volume.job_id == given.c.job_id)
            .returning(Volume.id)
            .execution_options(synchronize_session=False)
        )
        return (await self._session.scalars(query)).all()

    async def _flush(self, volume: Volume) -> None:
        name = volume.name
        try:
            await self._session.flush()
        except IntegrityError as error:
            if "volumes_name_key" in str(error.orig):
                raise NameTaken(f"There is already a volume named {name!r}.", field="name") from error
            raise


def _given(endings: Sequence[Ending]) -> TableValuedAlias:
    rows = (ending._asdict() for ending in endings)
    return given_rows(rows, volume_id=Uuid(), job_id=Uuid(), size=Volume.size.type)
