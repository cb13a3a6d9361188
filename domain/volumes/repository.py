"""Queries on the table of volumes. Takes a session, never commits."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, TextualSelect, Uuid, func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.base import find_owned
from domain.db.sql import array_rows, as_arrays, as_rows, insertion, unnested
from domain.errors import NameTaken, VolumeNotFound
from domain.id_prefix import begins_with
from domain.operations import VolumeState
from domain.volumes.attachments.repository import AttachmentRepository
from domain.volumes.model import LockedVolume, Volume, require_move

# --- the frequent statements, as text ---------------------------------------------------------------------------
#
# Building them takes SQLAlchemy longer than PostgreSQL takes to run them. A job or a chunk of items needs a few of them
# each; `benchmarks/race.py throughput` and `benchmarks/bulk.py` show their cost. Each is prepared against the schema by
# a test. Everything else is written with SQLAlchemy.

_LOCKED_COLUMNS: Final = ", ".join(LockedVolume._fields)


def _release_statement(change: str) -> TextualSelect:
    """Build the SQL that changes every volume still held by its job.

    Rows are locked in the order of their ids before they change: UPDATE locks rows in the order in which it finds them,
    and two statements with different orders could deadlock. The ids are also passed to WHERE, so that the planner does
    not choose a sequential scan for a few hundred of them.
    """
    releases = unnested("release", volume_id="uuid", job_id="uuid", size="bigint")
    return text(f"""
            WITH held AS MATERIALIZED (
                SELECT volumes.id, release.size
                FROM volumes JOIN {releases} ON volumes.id = release.volume_id AND volumes.job_id = release.job_id
                WHERE volumes.id = ANY(CAST(:volume_id AS uuid[]))
                ORDER BY volumes.id FOR NO KEY UPDATE OF volumes
            )
            {change} volumes.id = held.id RETURNING volumes.id
    """).columns(id=Uuid())  # noqa: S608 (built from constants)


def _lock_statement(locking: str) -> TextualSelect:
    """Build the SQL that locks and reads volumes, in the order of their ids."""
    return text(f"""
        SELECT {_LOCKED_COLUMNS} FROM volumes WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id {locking}
    """).columns(*(getattr(Volume, name) for name in LockedVolume._fields))  # noqa: S608 (built from constants)


#: Insert volumes whose names are free in their projects, in the order of names: two transactions that add the same
#: names cannot deadlock.
#: The sort also runs before the first row is written, so that lock_timeout is set before any wait for a name that
#: another transaction has inserted and not yet committed.
ADD_WITH_FREE_NAMES: Final = text(f"""
    {insertion(Volume, extra_from="set_config('lock_timeout', '100ms', true),")}
    ORDER BY given.project_id, given.name
    ON CONFLICT (project_id, name) DO NOTHING
    RETURNING id
""").columns(id=Uuid())

#: Lock and read volumes; wait for locked rows.
LOCK: Final = _lock_statement("FOR UPDATE")
#: Lock and read volumes that no other transaction has locked.
LOCK_WITHOUT_WAITING: Final = _lock_statement("FOR NO KEY UPDATE SKIP LOCKED")

#: Acquire locked volumes, each for a job.
ACQUIRE: Final = text(f"""
    UPDATE volumes
    SET state = :state, job_id = acquired.job_id, growing_to = acquired.growing_to, version = version + 1,
        updated_at = now()
    FROM {unnested("acquired", id="uuid", job_id="uuid", growing_to="bigint")}
    WHERE volumes.id = acquired.id AND volumes.id = ANY(CAST(:id AS uuid[]))
""")  # noqa: S608 (built from constants)

#: Move volumes to an idle state, with a new size if one is given.
RELEASE: Final = _release_statement("""
    UPDATE volumes
    SET state = :state, job_id = NULL, version = version + 1,
        size = coalesce(held.size, volumes.size), growing_to = NULL, updated_at = now(),
        grown_at = CASE WHEN volumes.state = 'expanding' AND held.size > volumes.size THEN now()
            ELSE volumes.grown_at END
    FROM held WHERE
""")
#: Delete the rows of volumes.
REMOVE: Final = _release_statement("DELETE FROM volumes USING held WHERE")


# --- the table ----------------------------------------------------------------------------------------------------


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


class Acquisition(NamedTuple):
    """A volume that a job acquires, and the size in bytes that the job may give it; None leaves the size unchanged."""

    id: UUID
    job_id: UUID
    growing_to: int | None = None


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

    async def add_with_free_names(self, volumes: Sequence[Volume]) -> set[UUID]:
        """Insert those of these volumes whose names are free, and return their ids.

        Of two volumes with the same name the first is inserted. If an open transaction has inserted one of the names,
        the statement waits for it for up to 100 ms, which delays the whole batch.

        Raises:
            DatabaseUnavailable: that transaction has not ended within 100 ms (see `was_lock_timeout`).
        """
        return set((await self._session.scalars(ADD_WITH_FREE_NAMES, {"rows": as_rows(volumes)})).all())

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

    async def lock_many(self, volume_ids: Collection[UUID]) -> Sequence[LockedVolume]:
        """Lock and read those of these volumes that exist, in the order of their ids; wait for locked rows."""
        return [LockedVolume(*row) for row in await self._session.execute(LOCK, {"ids": list(volume_ids)})]

    async def lock_without_waiting(self, volume_ids: Collection[UUID]) -> Sequence[LockedVolume]:
        """Lock and read those of these volumes that exist and are not locked by another transaction."""
        rows = await self._session.execute(LOCK_WITHOUT_WAITING, {"ids": list(volume_ids)})
        return [LockedVolume(*row) for row in rows]

    async def acquire_each(self, acquisitions: Sequence[Acquisition], state: VolumeState) -> None:
        """Acquire locked volumes, at least one, each for its own job."""
        await self._session.execute(ACQUIRE, {**as_arrays(acquisitions), "state": state})

    async def acquire_many(
        self, volumes: Sequence[LockedVolume], state: VolumeState, job_id: UUID, sizes: Mapping[UUID, int | None]
    ) -> dict[UUID, int]:
        """Acquire locked volumes for one job, and return their new versions; ``sizes`` in bytes, if it grows them."""
        if volumes:
            await self.acquire_each([Acquisition(one.id, job_id, sizes.get(one.id)) for one in volumes], state)
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
        return await self._release(RELEASE, releases, state=state)

    async def remove(self, releases: Sequence[Release]) -> Sequence[UUID]:
        """Delete the rows of deleted volumes; return the ids of those that their job still held."""
        return await self._release(REMOVE, releases)

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
