"""Every question that is asked of the table of volumes, by name. Takes a session, never commits."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, TextualSelect, Uuid, bindparam, func, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.base import enum_text
from domain.db.sql import as_arrays, given_rows, json_value, unnested
from domain.errors import NameTaken, VolumeBusy, VolumeNotFound, VolumeUnusable
from domain.volumes.model import Volume
from domain.volumes.states import BUSY, MOVES, VolumeState


@dataclass(frozen=True)
class VolumeFilter:
    """Which volumes a list shows; None means any."""

    state: VolumeState | None = None
    name: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


class Release(NamedTuple):
    """A volume that its job lets go of, with the size in bytes that it now has; None: as before."""

    volume_id: UUID
    job_id: UUID
    size: int | None


class LockedVolume(NamedTuple):
    """What bulk jobs must know of a volume whose row is locked; a plain tuple, because there are a million of them."""

    id: UUID
    backend: str
    state: VolumeState
    size: int
    version: int
    job_id: UUID | None
    autogrow: dict[str, Any] | None

    def acquired_by(self, state: VolumeState, job_id: UUID) -> "LockedVolume":
        """Be the same volume in the hands of a job."""
        return self._replace(state=state, job_id=job_id, version=self.version + 1)


def _release(change: str) -> TextualSelect:
    """SQL for the ends of many operations, put together once and for all: every job needs one.

    Locks by id first: a change locks as it finds rows, and two that find them differently would wait for each other.
    The ids are named twice, so that nobody gets the idea to read the whole table for a few hundred of them.
    """
    endings = unnested("ending", volume_id="uuid", job_id="uuid", size="bigint")
    return text(f"""
            WITH held AS MATERIALIZED (
                SELECT volumes.id, ending.size
                FROM volumes JOIN {endings} ON volumes.id = ending.volume_id AND volumes.job_id = ending.job_id
                WHERE volumes.id = ANY(CAST(:volume_id AS uuid[]))
                ORDER BY volumes.id FOR NO KEY UPDATE OF volumes
            )
            {change} volumes.id = held.id RETURNING volumes.id
    """).columns(id=Uuid())  # noqa: S608 (words of our own)


_RELEASE: Final = _release("""
    UPDATE volumes
    SET state = :state, job_id = NULL, version = version + 1,
        size = coalesce(held.size, volumes.size), updated_at = now()
    FROM held WHERE
""")
_LOCK_MANY: Final = text(f"""
    SELECT {", ".join(LockedVolume._fields)} FROM volumes WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE
""").columns(state=enum_text(VolumeState), autogrow=JSONB())  # noqa: S608 (words of our own)
_ACQUIRE_MANY: Final = text("""
    UPDATE volumes SET state = :state, job_id = :job_id, version = version + 1, updated_at = now()
    WHERE id = ANY(CAST(:ids AS uuid[]))
""")
_REMOVE: Final = _release("DELETE FROM volumes USING held WHERE")

#: In the order of names: of two that add the same ones, one waits for the other, and never both. It is sorted before
#: anything is written, so by then it is known how long to wait for a name that somebody is just taking.
_ADD: Final = (
    text("""
        INSERT INTO volumes (id, name, backend, state, job_id, size, version, labels, autogrow)
        SELECT new.*
        FROM set_config('lock_timeout', :patience, true), jsonb_to_recordset(:volumes) AS new
            (id uuid, name text, backend text, state text, job_id uuid, size bigint, version bigint,
             labels jsonb, autogrow jsonb)
        ORDER BY name
        ON CONFLICT (name) DO NOTHING
        RETURNING id
    """)
    .bindparams(bindparam("volumes", type_=JSONB()), patience="100ms")
    .columns(id=Uuid())
)
_RETURNED: Final = ("id", "name", "backend", "state", "job_id", "size", "version", "labels", "autogrow")

_LOCK_AVAILABLE: Final = (
    text(f"""
        SELECT {", ".join(LockedVolume._fields)} FROM volumes
        WHERE id = ANY(:ids) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    """)  # noqa: S608 (words of our own)
    .bindparams(bindparam("ids", type_=ARRAY(Uuid())))
    .columns(*(getattr(Volume, name) for name in LockedVolume._fields))
)

_ACQUIRE_EACH: Final = text("""
    UPDATE volumes
    SET state = :state, job_id = taken.job_id, version = version + 1, updated_at = now()
    FROM jsonb_to_recordset(:taken) AS taken (id uuid, job_id uuid)
    WHERE volumes.id = taken.id
""").bindparams(bindparam("taken", type_=JSONB()))


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

    async def add_with_free_names(self, volumes: Sequence[Volume]) -> set[UUID]:
        """Write those of these new volumes down whose names are free; returns which ones.

        Of two with the same name the first is written. For a name that somebody else is just taking, in a transaction
        as short as ours, all are held up for a tenth of a second.

        Raises:
            DatabaseUnavailable: then it was still not decided who gets it (`was_locked`).
        """
        rows = [{name: json_value(getattr(volume, name)) for name in _RETURNED} for volume in volumes]
        return set((await self._session.scalars(_ADD, {"volumes": rows})).all())

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

    async def acquire(self, volume_id: UUID, state: VolumeState, job_id: UUID) -> Volume:
        """Give a volume into the hands of a job; the row stays locked, so of fifty that ask at once one gets it.

        Raises:
            VolumeNotFound: there is none.
            VolumeBusy, VolumeUnusable: it cannot go over to ``state`` now.
        """
        volume = await self.lock(volume_id)
        require_ready(volume, state)
        volume.state, volume.job_id = state, job_id
        volume.version += 1
        return volume

    async def backends_of(self, volume_ids: Collection[UUID]) -> dict[UUID, str]:
        """Tell on which backend each of these volumes is, as far as they exist."""
        query = select(Volume.id, Volume.backend).where(Volume.id.in_(volume_ids))
        return {row.id: row.backend for row in await self._session.execute(query)}

    async def lock_many(self, volume_ids: Collection[UUID]) -> Sequence[LockedVolume]:
        """Read those of these volumes that exist, keep others from changing them, and lock in the order of ids."""
        return [LockedVolume(*row) for row in await self._session.execute(_LOCK_MANY, {"ids": list(volume_ids)})]

    async def lock_available(self, volume_ids: Collection[UUID]) -> Sequence[LockedVolume]:
        """The same without those that somebody has locked: nobody is waited for."""
        return [LockedVolume(*row) for row in await self._session.execute(_LOCK_AVAILABLE, {"ids": list(volume_ids)})]

    async def acquire_each(self, jobs: Mapping[UUID, UUID], state: VolumeState) -> None:
        """Give locked volumes into the hands of jobs, each into those of its own: ``jobs`` by volume."""
        taken = [{"id": str(volume_id), "job_id": str(job_id)} for volume_id, job_id in jobs.items()]
        await self._session.execute(_ACQUIRE_EACH, {"taken": taken, "state": state})

    async def acquire_many(self, volumes: Sequence[LockedVolume], state: VolumeState, job_id: UUID) -> dict[UUID, int]:
        """Give locked volumes into the hands of a job; returns their new versions."""
        if volumes:
            given = {"ids": [volume.id for volume in volumes], "state": state, "job_id": job_id}
            await self._session.execute(_ACQUIRE_MANY, given)
        return {volume.id: volume.version + 1 for volume in volumes}

    async def raise_versions(self, volume_ids: Collection[UUID], job_id: UUID) -> None:
        """Raise the versions of volumes that a job has, so that what it does from now on goes before what it did."""
        query = update(Volume).where(Volume.id.in_(volume_ids), Volume.job_id == job_id)
        await self._session.execute(query.values(version=Volume.version + 1))

    async def record_usage(self, used: Mapping[UUID, int]) -> None:
        """Write down how many bytes of each volume were found allocated just now."""
        if not used:
            return
        rows = ({"id": volume_id, "used": number} for volume_id, number in used.items())
        given = given_rows(rows, id=Uuid(), used=BigInteger())
        query = update(Volume).where(Volume.id == given.c.id).values(used=given.c.used, used_at=func.now())
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def rename(self, volume: Volume, name: str) -> None:
        """Give a volume another name.

        Raises:
            NameTaken: another volume has it.
        """
        volume.name = name
        await self._flush(volume)

    async def page(self, filters: VolumeFilter, *, before: UUID | None, limit: int) -> Sequence[Volume]:
        """Read ``limit`` volumes and one more, newest first."""
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

    async def release(self, endings: Sequence[Release], state: VolumeState) -> Sequence[UUID]:
        """Bring volumes to rest in ``state`` at the end of the jobs that had them; returns which ones there were."""
        return await self._release(_RELEASE, endings, state=state)

    async def remove(self, endings: Sequence[Release]) -> Sequence[UUID]:
        """Strike off volumes that their jobs have deleted; returns which ones there were."""
        return await self._release(_REMOVE, endings)

    async def _release(self, statement: TextualSelect, endings: Sequence[Release], **more: str) -> Sequence[UUID]:
        if not endings:
            return []
        return (await self._session.scalars(statement, {**as_arrays(endings), **more})).all()

    async def _flush(self, volume: Volume) -> None:
        name = volume.name
        try:
            await self._session.flush()
        except IntegrityError as error:
            if "volumes_name_key" in str(error.orig):
                raise name_taken(name) from error
            raise


def name_taken(name: str) -> NameTaken:
    """Say which name it is that another volume has."""
    return NameTaken(f"There is already a volume named {name!r}.", field="name")


def require_ready(volume: Volume | LockedVolume, state: VolumeState) -> None:
    """Make sure that a volume can go over to ``state`` now.

    Raises:
        VolumeBusy, VolumeUnusable: it cannot.
    """
    if volume.state in BUSY:
        raise VolumeBusy(job_id=volume.job_id, state=volume.state)
    if state not in MOVES[volume.state]:
        raise VolumeUnusable(state=volume.state)


def require_held(expected: Iterable[UUID], touched: Iterable[UUID]) -> None:
    """Make sure that jobs and what they are about agree on who has whom; otherwise nothing of it may be committed.

    Giving up is not so strict: what is in other hands needs no way out.
    """
    missing = set(expected) - set(touched)
    if missing:
        raise RuntimeError(f"not held by the jobs that end: {sorted(map(str, missing))}")
