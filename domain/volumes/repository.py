"""Queries on the table of volumes. Takes a session, never commits."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, TextualSelect, Uuid, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.base import find_owned
from domain.db.sql import array_rows, as_array, as_arrays
from domain.errors import NameTaken, VolumeNotFound
from domain.id_prefix import begins_with
from domain.operations import VolumeState
from domain.volumes import statements
from domain.volumes.attachments.repository import AttachmentRepository
from domain.volumes.model import Volume, VolumeRow, require_move


@dataclass(frozen=True)
class VolumeFilter:
    """Filters of a list of volumes; None matches any, and so do no ``ids``."""

    state: VolumeState | None = None
    name: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    #: A part of the name, whatever its case.
    name_part: str | None = None
    backend: str | None = None
    #: More than this percentage of the volume is used.
    usage_above: float | None = None
    id_prefix: str | None = None
    ids: Collection[UUID] = ()


class _Acquisition(NamedTuple):
    """A volume that a job acquires, and the size in bytes that the job may give it; None leaves the size unchanged."""

    id: UUID
    growing_to: int | None


class Release(NamedTuple):
    """A volume that its job releases, with its new size in bytes; None leaves the size unchanged."""

    volume_id: UUID
    job_id: UUID
    size: int | None


class VolumeRepository:
    """The table of volumes, within one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, volume: Volume) -> Volume:
        """Insert a new volume.

        Raises:
            NameTaken: another volume has the name.
        """
        self._session.add(volume)
        await self.flush(volume)
        return volume

    async def flush(self, volume: Volume) -> None:
        """Write the changes to a volume.

        Raises:
            NameTaken: another volume has its name.
        """
        name = volume.name
        try:
            await self._session.flush()
        except IntegrityError as error:
            if "volumes_project_id_name_idx" in str(error.orig):
                raise name_taken(name) from error
            raise

    async def get(self, volume_id: UUID, project_id: UUID) -> Volume:
        """Read one volume of a project.

        Raises:
            VolumeNotFound: no such volume.
        """
        volume = await find_owned(self._session, Volume, volume_id, project_id)
        if volume is None:
            raise VolumeNotFound(volume_id)
        return volume

    async def lock(self, volume_id: UUID, project_id: UUID) -> Volume:
        """Read one volume of a project and lock its row.

        Raises:
            VolumeNotFound: no such volume.
        """
        volume = await find_owned(self._session, Volume, volume_id, project_id, for_update=True)
        if volume is None:
            raise VolumeNotFound(volume_id)
        return volume

    async def acquire(self, volume_id: UUID, project_id: UUID, state: VolumeState, job_id: UUID) -> Volume:
        """Acquire a volume of a project for a job. The row stays locked: of concurrent requests, only one acquires it.

        Raises:
            VolumeNotFound: no such volume.
            VolumeBusy, VolumeUnusable: it cannot move to ``state`` now.
            VolumeAttached: its bytes would be replaced or removed while a holder uses them.
        """
        volume = await self.lock(volume_id, project_id)
        require_move(volume, state)
        if state in (VolumeState.RESTORING, VolumeState.DELETING):
            await AttachmentRepository(self._session).refuse_if_attached(volume_id)
        volume.state, volume.job_id, volume.growing_to = state, job_id, None
        volume.version += 1
        if state is VolumeState.RESTORING:
            forget_usage(volume)
        return volume

    async def backends_of(
        self, volume_ids: Collection[UUID], project_id: UUID, *, measurable: bool = False
    ) -> dict[UUID, str]:
        """Return the backend of each of these volumes that exists in a project; ``measurable``: by its blocks."""
        query = select(Volume.id, Volume.backend).where(Volume.id.in_(volume_ids), Volume.project_id == project_id)
        query = query.where(Volume.filesystem.is_(None)) if measurable else query
        return {row.id: row.backend for row in await self._session.execute(query)}

    async def names(self, volume_ids: Collection[UUID], project_id: UUID) -> dict[UUID, str]:
        """Return the name of each of these volumes that exists in a project."""
        query = select(Volume.id, Volume.name).where(Volume.id.in_(volume_ids), Volume.project_id == project_id)
        return {row.id: row.name for row in await self._session.execute(query)}

    async def sample(self, backend: str, limit: int) -> Sequence[UUID]:
        """Return up to ``limit`` volumes that have data on a backend."""
        query = select(Volume.id).where(Volume.backend == backend, Volume.state == VolumeState.AVAILABLE).limit(limit)
        return (await self._session.scalars(query)).all()

    async def lock_many(self, volume_ids: Collection[UUID]) -> Sequence[VolumeRow]:
        """Lock and read those of these volumes that exist, in the order of their ids; wait for locked rows."""
        return [VolumeRow(*row) for row in await self._session.execute(statements.LOCK, {"ids": as_array(volume_ids)})]

    async def acquire_many(
        self, volumes: Sequence[VolumeRow], state: VolumeState, job_id: UUID, sizes: Mapping[UUID, int | None]
    ) -> dict[UUID, int]:
        """Acquire locked volumes for one job, and return their new versions; ``sizes`` in bytes, if it grows them."""
        if volumes:
            acquisitions = as_arrays([_Acquisition(one.id, sizes.get(one.id)) for one in volumes])
            await self._session.execute(statements.ACQUIRE, {**acquisitions, "state": state, "job_id": job_id})
        return {volume.id: volume.version + 1 for volume in volumes}

    async def raise_versions(self, volume_ids: Collection[UUID], job_id: UUID, *, above: int = 0) -> None:
        """Raise the versions of volumes that a job holds, so that its new fences supersede its old ones.

        Each is incremented, and is then higher than ``above``.
        """
        query = update(Volume).where(Volume.id.in_(volume_ids), Volume.job_id == job_id)
        await self._session.execute(query.values(version=func.greatest(Volume.version, above) + 1))

    async def record_usage(self, used: Mapping[UUID, int | None]) -> None:
        """Store the bytes in use of each volume, as measured now; None if its backend cannot tell."""
        if not used:
            return
        rows = ({"id": volume_id, "used": in_use} for volume_id, in_use in used.items())
        usage = array_rows(rows, id=Uuid(), used=BigInteger())
        query = update(Volume).where(Volume.id == usage.c.id).values(used=usage.c.used, used_at=func.now())
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def page(
        self, filters: VolumeFilter, project_id: UUID, *, before: UUID | None, limit: int
    ) -> Sequence[Volume]:
        """Read up to ``limit`` + 1 volumes of a project, newest first; one more shows that there is a next page."""
        query = select(Volume).where(Volume.project_id == project_id).order_by(Volume.id.desc()).limit(limit + 1)
        if filters.state is not None:
            query = query.where(Volume.state == filters.state)
        if filters.name is not None:
            query = query.where(Volume.name == filters.name)
        if filters.labels:
            query = query.where(Volume.labels.contains(filters.labels))
        if filters.name_part is not None:
            query = query.where(func.strpos(func.lower(Volume.name), filters.name_part.lower()) > 0)
        if filters.backend is not None:
            query = query.where(Volume.backend == filters.backend)
        if filters.usage_above is not None:
            query = query.where(Volume.used * 100 > Volume.size * filters.usage_above)
        if filters.id_prefix is not None:
            query = query.where(begins_with(Volume.id, filters.id_prefix))
        if filters.ids:
            query = query.where(Volume.id.in_(filters.ids))
        if before is not None:
            query = query.where(Volume.id < before)
        return (await self._session.scalars(query)).all()

    async def release(self, releases: Sequence[Release], state: VolumeState) -> Sequence[UUID]:
        """Move volumes to the idle ``state`` and clear their job; return the ids of those that their job still held."""
        return await self._release(statements.RELEASE, releases, state=state)

    async def remove(self, releases: Sequence[Release]) -> Sequence[UUID]:
        """Delete the rows of deleted volumes; return the ids of those that their job still held."""
        return await self._release(statements.REMOVE, releases)

    async def _release(self, statement: TextualSelect, releases: Sequence[Release], **values: str) -> Sequence[UUID]:
        if not releases:
            return []
        return (await self._session.scalars(statement, {**as_arrays(releases), **values})).all()


def forget_usage(volume: Volume) -> None:
    """Forget what was measured and reported of bytes that are replaced now, and how far their file system had grown."""
    volume.used = volume.used_at = None
    volume.filesystem_size = volume.filesystem_used = volume.inodes = volume.inodes_used = None
    volume.filesystem_grown_to = None if volume.filesystem is None else 0


def name_taken(name: str) -> NameTaken:
    """Build the error for a name that another volume has."""
    return NameTaken(f"There is already a volume named {name!r}.", field="name")
