"""Queries on the table of volumes. Takes a session, never commits."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, TextualSelect, Uuid, bindparam, func, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.base import enum_text
from domain.db.sql import as_arrays, json_rows, json_value, unnested
from domain.errors import NameTaken, VolumeBusy, VolumeNotFound, VolumeUnusable
from domain.volumes.model import Volume
from domain.volumes.states import BUSY, MOVES, VolumeState


@dataclass(frozen=True)
class VolumeFilter:
    """Filters of a list of volumes; None matches any."""

    state: VolumeState | None = None
    name: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


class Release(NamedTuple):
    """A volume that its job releases, with its new size in bytes; None leaves the size unchanged."""

    volume_id: UUID
    job_id: UUID
    size: int | None


class LockedVolume(NamedTuple):
    """The columns of a locked row that batches need. A plain tuple: a bulk job may read a million of them."""

    id: UUID
    backend: str
    state: VolumeState
    size: int
    version: int
    job_id: UUID | None
    autogrow: dict[str, Any] | None

    def acquired_by(self, state: VolumeState, job_id: UUID) -> "LockedVolume":
        """Return the row as it will be when ``job_id`` has acquired it; its version goes up by one."""
        return self._replace(state=state, job_id=job_id, version=self.version + 1)


def _release_statement(change: str) -> TextualSelect:
    """Build the SQL that changes every volume still held by its job. Built once: every job needs it.

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


_RELEASE: Final = _release_statement("""
    UPDATE volumes
    SET state = :state, job_id = NULL, version = version + 1,
        size = coalesce(held.size, volumes.size), updated_at = now()
    FROM held WHERE
""")
_LOCK_MANY: Final = text(f"""
    SELECT {", ".join(LockedVolume._fields)} FROM volumes WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE
""").columns(state=enum_text(VolumeState), autogrow=JSONB())  # noqa: S608 (built from constants)
_ACQUIRE_MANY: Final = text("""
    UPDATE volumes SET state = :state, job_id = :job_id, version = version + 1, updated_at = now()
    WHERE id = ANY(CAST(:ids AS uuid[]))
""")
_REMOVE: Final = _release_statement("DELETE FROM volumes USING held WHERE")

#: Inserts in the order of names, so that two transactions adding the same names cannot deadlock. The sort also runs
#: before the first row is written, so that lock_timeout is set before any wait for a name that another transaction has
#: inserted and not yet committed.
_ADD_WITH_FREE_NAMES: Final = (
    text("""
        INSERT INTO volumes (id, name, backend, state, job_id, size, version, labels, autogrow)
        SELECT new.*
        FROM set_config('lock_timeout', :lock_timeout, true), jsonb_to_recordset(:volumes) AS new
            (id uuid, name text, backend text, state text, job_id uuid, size bigint, version bigint,
             labels jsonb, autogrow jsonb)
        ORDER BY name
        ON CONFLICT (name) DO NOTHING
        RETURNING id
    """)
    .bindparams(bindparam("volumes", type_=JSONB()), lock_timeout="100ms")
    .columns(id=Uuid())
)
_NEW_COLUMNS: Final = ("id", "name", "backend", "state", "job_id", "size", "version", "labels", "autogrow")

_LOCK_WITHOUT_WAITING: Final = (
    text(f"""
        SELECT {", ".join(LockedVolume._fields)} FROM volumes
        WHERE id = ANY(:ids) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    """)  # noqa: S608 (built from constants)
    .bindparams(bindparam("ids", type_=ARRAY(Uuid())))
    .columns(*(getattr(Volume, name) for name in LockedVolume._fields))
)

_ACQUIRE_EACH: Final = text("""
    UPDATE volumes
    SET state = :state, job_id = acquired.job_id, version = version + 1, updated_at = now()
    FROM jsonb_to_recordset(:acquired) AS acquired (id uuid, job_id uuid)
    WHERE volumes.id = acquired.id
""").bindparams(bindparam("acquired", type_=JSONB()))


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
        await self._flush(volume)
        return volume

    async def add_with_free_names(self, volumes: Sequence[Volume]) -> set[UUID]:
        """Insert those of these volumes whose names are free, and return their ids.

        Of two volumes with the same name the first is inserted. If an open transaction has inserted one of the names,
        the statement waits for it for up to 100 ms, which delays the whole batch.

        Raises:
            DatabaseUnavailable: that transaction has not ended within 100 ms (see `was_lock_timeout`).
        """
        rows = [{name: json_value(getattr(volume, name)) for name in _NEW_COLUMNS} for volume in volumes]
        return set((await self._session.scalars(_ADD_WITH_FREE_NAMES, {"volumes": rows})).all())

    async def get(self, volume_id: UUID) -> Volume:
        """Read one volume.

        Raises:
            VolumeNotFound: no such volume.
        """
        volume = await self._session.get(Volume, volume_id)
        if volume is None:
            raise VolumeNotFound(volume_id)
        return volume

    async def lock(self, volume_id: UUID) -> Volume:
        """Read one volume and lock its row.

        Raises:
            VolumeNotFound: no such volume.
        """
        volume = await self._session.get(Volume, volume_id, with_for_update=True, populate_existing=True)
        if volume is None:
            raise VolumeNotFound(volume_id)
        return volume

    async def acquire(self, volume_id: UUID, state: VolumeState, job_id: UUID) -> Volume:
        """Acquire a volume for a job. The row stays locked: of concurrent requests, only one acquires it.

        Raises:
            VolumeNotFound: no such volume.
            VolumeBusy, VolumeUnusable: it cannot move to ``state`` now.
        """
        volume = await self.lock(volume_id)
        require_move(volume, state)
        volume.state, volume.job_id = state, job_id
        volume.version += 1
        return volume

    async def backends_of(self, volume_ids: Collection[UUID]) -> dict[UUID, str]:
        """Return the backend of each of these volumes that exists."""
        query = select(Volume.id, Volume.backend).where(Volume.id.in_(volume_ids))
        return {row.id: row.backend for row in await self._session.execute(query)}

    async def lock_many(self, volume_ids: Collection[UUID]) -> Sequence[LockedVolume]:
        """Lock and read those of these volumes that exist, in the order of their ids; wait for locked rows."""
        return [LockedVolume(*row) for row in await self._session.execute(_LOCK_MANY, {"ids": list(volume_ids)})]

    async def lock_without_waiting(self, volume_ids: Collection[UUID]) -> Sequence[LockedVolume]:
        """Lock and read those of these volumes that exist and are not locked by another transaction."""
        rows = await self._session.execute(_LOCK_WITHOUT_WAITING, {"ids": list(volume_ids)})
        return [LockedVolume(*row) for row in rows]

    async def acquire_each(self, jobs: Mapping[UUID, UUID], state: VolumeState) -> None:
        """Acquire locked volumes, each for its own job; ``jobs`` maps volume ids to job ids."""
        acquired = [{"id": str(volume_id), "job_id": str(job_id)} for volume_id, job_id in jobs.items()]
        await self._session.execute(_ACQUIRE_EACH, {"acquired": acquired, "state": state})

    async def acquire_many(self, volumes: Sequence[LockedVolume], state: VolumeState, job_id: UUID) -> dict[UUID, int]:
        """Acquire locked volumes for one job, and return their new versions."""
        if volumes:
            values = {"ids": [volume.id for volume in volumes], "state": state, "job_id": job_id}
            await self._session.execute(_ACQUIRE_MANY, values)
        return {volume.id: volume.version + 1 for volume in volumes}

    async def raise_versions(self, volume_ids: Collection[UUID], job_id: UUID) -> None:
        """Increment the versions of volumes that a job holds, so that its new fences supersede its old ones."""
        query = update(Volume).where(Volume.id.in_(volume_ids), Volume.job_id == job_id)
        await self._session.execute(query.values(version=Volume.version + 1))

    async def record_usage(self, used: Mapping[UUID, int]) -> None:
        """Store the allocated bytes of each volume, as measured now."""
        if not used:
            return
        rows = ({"id": volume_id, "used": allocated} for volume_id, allocated in used.items())
        usage = json_rows(rows, id=Uuid(), used=BigInteger())
        query = update(Volume).where(Volume.id == usage.c.id).values(used=usage.c.used, used_at=func.now())
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def rename(self, volume: Volume, name: str) -> None:
        """Rename a volume.

        Raises:
            NameTaken: another volume has the name.
        """
        volume.name = name
        await self._flush(volume)

    async def page(self, filters: VolumeFilter, *, before: UUID | None, limit: int) -> Sequence[Volume]:
        """Read up to ``limit`` + 1 volumes, newest first; the extra one shows that there is a next page."""
        query = select(Volume).order_by(Volume.id.desc()).limit(limit + 1)
        if filters.state is not None:
            query = query.where(Volume.state == filters.state)
        if filters.name is not None:
            query = query.where(Volume.name == filters.name)
        if filters.labels:
            query = query.where(Volume.labels.contains(filters.labels))
        if before is not None:
            query = query.where(Volume.id < before)
        return (await self._session.scalars(query)).all()

    async def release(self, releases: Sequence[Release], state: VolumeState) -> Sequence[UUID]:
        """Move volumes to the idle ``state`` and clear their job; return the ids of those that their job still held."""
        return await self._release(_RELEASE, releases, state=state)

    async def remove(self, releases: Sequence[Release]) -> Sequence[UUID]:
        """Delete the rows of deleted volumes; return the ids of those that their job still held."""
        return await self._release(_REMOVE, releases)

    async def _release(self, statement: TextualSelect, releases: Sequence[Release], **values: str) -> Sequence[UUID]:
        if not releases:
            return []
        return (await self._session.scalars(statement, {**as_arrays(releases), **values})).all()

    async def _flush(self, volume: Volume) -> None:
        name = volume.name
        try:
            await self._session.flush()
        except IntegrityError as error:
            if "volumes_name_key" in str(error.orig):
                raise name_taken(name) from error
            raise


def name_taken(name: str) -> NameTaken:
    """Build the error for a name that another volume has."""
    return NameTaken(f"There is already a volume named {name!r}.", field="name")


def require_move(volume: Volume | LockedVolume, state: VolumeState) -> None:
    """Require that a volume can move to ``state`` now.

    Raises:
        VolumeBusy, VolumeUnusable: it cannot.
    """
    if volume.state in BUSY:
        raise VolumeBusy(job_id=volume.job_id, state=volume.state)
    if state not in MOVES[volume.state]:
        raise VolumeUnusable(state=volume.state)


def require_held(expected: Iterable[UUID], changed: Iterable[UUID]) -> None:
    """Require that every row expected to be held by its job was changed; otherwise the transaction must roll back.

    Checked for succeeded jobs only: a failed job has no effect to record, and a row held by another job is released by
    that job.

    Raises:
        RuntimeError: a row is held by another job, or by none.
    """
    missing = set(expected) - set(changed)
    if missing:
        raise RuntimeError(f"not held by the jobs that end: {sorted(map(str, missing))}")
