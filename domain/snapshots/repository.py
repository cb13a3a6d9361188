"""Every question that is asked of the table of snapshots, by name. Takes a session, never commits."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    TableValuedAlias,
    Uuid,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.sql import given_rows
from domain.errors import NameTaken, SnapshotBusy, SnapshotNotFound, SnapshotUnusable, VolumeHasSnapshots
from domain.jobs.model import Job
from domain.jobs.states import LIVE
from domain.snapshots.model import Snapshot
from domain.snapshots.retention import RetentionRule
from domain.snapshots.states import BUSY, MOVES, SnapshotState

#: States of a snapshot that can be used, if not at this very moment.
_RESTORABLE: Final = (SnapshotState.READY, SnapshotState.RESTORING, SnapshotState.CLONING)
#: So many a schedule may want to delete at once: for a hundred times as many no transaction would be short enough.
_EXPIRED: Final = 5000


@dataclass(frozen=True)
class SnapshotFilter:
    """Which snapshots a list shows; None means any."""

    volume_id: UUID | None = None
    state: SnapshotState | None = None
    name: str | None = None


class SnapshotRelease(NamedTuple):
    """A snapshot that its job lets go of, with the size in bytes that it now has; None: as before."""

    snapshot_id: UUID
    job_id: UUID
    size: int | None


class SnapshotRepository:
    """The table of snapshots, seen from one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, snapshot: Snapshot) -> Snapshot:
        """Write a new snapshot.

        Raises:
            NameTaken: another snapshot of its volume has its name.
        """
        self._session.add(snapshot)
        name = snapshot.name
        try:
            await self._session.flush()
        except IntegrityError as error:
            if "snapshots_volume_id_name_key" in str(error.orig):
                raise NameTaken(f"The volume already has a snapshot named {name!r}.", field="name") from error
            raise
        return snapshot

    async def get(self, snapshot_id: UUID) -> Snapshot:
        """Read one snapshot.

        Raises:
            SnapshotNotFound: there is none.
        """
        snapshot = await self._session.get(Snapshot, snapshot_id)
        if snapshot is None:
            raise SnapshotNotFound(snapshot_id)
        return snapshot

    async def acquire(self, snapshot_id: UUID, state: SnapshotState, job_id: UUID) -> Snapshot:
        """Give a snapshot into the hands of a job; the row stays locked.

        Raises:
            SnapshotNotFound: there is none.
            SnapshotBusy, SnapshotUnusable: it cannot go over to ``state`` now.
        """
        snapshot = await self._session.get(Snapshot, snapshot_id, with_for_update=True, populate_existing=True)
        if snapshot is None:
            raise SnapshotNotFound(snapshot_id)
        if state not in MOVES[snapshot.state]:
            if snapshot.state in BUSY:
                raise SnapshotBusy(job_id=snapshot.job_id, state=snapshot.state)
            raise SnapshotUnusable(state=snapshot.state)
        snapshot.state, snapshot.job_id = state, job_id
        snapshot.version += 1
        return snapshot

    async def page(self, filters: SnapshotFilter, *, before: UUID | None, limit: int) -> Sequence[Snapshot]:
        """Read ``limit`` snapshots and one more, newest first."""
        query = select(Snapshot).order_by(Snapshot.id.desc()).limit(limit + 1)
        if filters.volume_id is not None:
            query = query.where(Snapshot.volume_id == filters.volume_id)
        if filters.state is not None:
            query = query.where(Snapshot.state == filters.state)
        if filters.name is not None:
            query = query.where(Snapshot.name == filters.name)
        if before is not None:
            query = query.where(Snapshot.id < before)
        return (await self._session.scalars(query)).all()

    async def release(self, endings: Sequence[SnapshotRelease], state: SnapshotState) -> Sequence[UUID]:
        """Bring snapshots to rest in ``state`` at the end of the jobs that had them; returns which ones there were."""
        given = _given(endings)
        await self._lock_in_order([ending.snapshot_id for ending in endings])
        query = (
            update(Snapshot)
            .where(Snapshot.id == given.c.snapshot_id, Snapshot.job_id == given.c.job_id)
            .values(
                state=state,
                job_id=None,
                version=Snapshot.version + 1,
                size=func.coalesce(given.c.size, Snapshot.size),
                updated_at=func.now(),
            )
            .returning(Snapshot.id)
            .execution_options(synchronize_session=False)
        )
        return (await self._session.scalars(query)).all()

    async def release_after_clones(self, snapshot_ids: Collection[UUID], *, ended: Collection[UUID]) -> Sequence[UUID]:
        """Bring snapshots to rest if the clone jobs ``ended`` were their last; returns which ones were being cloned.

        Locked by a statement of its own: only what begins after that sees the clones that others have just begun or
        ended under the same lock. An UPDATE that had to wait would look at its row afresh, but not at other tables.
        """
        await self._lock_in_order(snapshot_ids)
        live = _a_live_clone(ended)
        query = (
            update(Snapshot)
            .where(Snapshot.id.in_(snapshot_ids), Snapshot.state == SnapshotState.CLONING)
            .values(
                state=case((live.is_(None), SnapshotState.READY), else_=SnapshotState.CLONING),
                job_id=live,
                version=Snapshot.version + 1,
                updated_at=func.now(),
            )
            .returning(Snapshot.id)
            .execution_options(synchronize_session=False)
        )
        return (await self._session.scalars(query)).all()

    async def remove(self, endings: Sequence[SnapshotRelease]) -> Sequence[UUID]:
        """Strike off snapshots that their jobs have deleted; returns which ones there were."""
        given = _given(endings)
        await self._lock_in_order([ending.snapshot_id for ending in endings])
        query = (
            delete(Snapshot)
            .where(Snapshot.id == given.c.snapshot_id, Snapshot.job_id == given.c.job_id)
            .returning(Snapshot.id)
            .execution_options(synchronize_session=False)
        )
        return (await self._session.scalars(query)).all()

    async def _lock_in_order(self, snapshot_ids: Collection[UUID]) -> None:
        """Lock by id: an UPDATE locks as it finds them, and two that find them differently wait for each other."""
        query = select(Snapshot.id).where(Snapshot.id.in_(snapshot_ids)).order_by(Snapshot.id)
        await self._session.execute(query.with_for_update())


class BulkSnapshotRepository:
    """What bulk jobs ask of the table of snapshots, seen from one transaction; each question takes a whole chunk.

    Of each volume that a bulk job has in its hands it has at most one snapshot, so the volume says which.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def named(self, volume_ids: Collection[UUID], name: str) -> set[UUID]:
        """Tell which of these volumes have a snapshot of that name; with their rows locked, it stays true."""
        query = select(Snapshot.volume_id).where(Snapshot.volume_id.in_(volume_ids), Snapshot.name == name)
        return set((await self._session.scalars(query)).all())

    async def add(self, snapshots: Sequence[Snapshot]) -> None:
        """Write new snapshots; their names must be free."""
        if snapshots:
            names = ("id", "volume_id", "name", "state", "size", "version", "job_id", "schedule_id")
            rows = [{name: getattr(snapshot, name) for name in names} for snapshot in snapshots]
            await self._session.execute(insert(Snapshot), rows)

    async def acquired_by(self, volume_ids: Collection[UUID], job_id: UUID) -> dict[UUID, tuple[UUID, int]]:
        """Tell which snapshots of these volumes a bulk job has, by volume: their ids and versions."""
        query = select(Snapshot.volume_id, Snapshot.id, Snapshot.version).where(_of(volume_ids, job_id))
        return {row.volume_id: (row.id, row.version) for row in await self._session.execute(query)}

    async def raise_versions(self, volume_ids: Collection[UUID], job_id: UUID) -> None:
        """Raise the versions of snapshots that a bulk job has, as is done with those of volumes."""
        query = update(Snapshot).where(_of(volume_ids, job_id)).values(version=Snapshot.version + 1)
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def discard(self, volume_ids: Collection[UUID], job_id: UUID) -> None:
        """Strike off snapshots that a bulk job has meant to take, and of which nothing is there."""
        query = delete(Snapshot).where(_of(volume_ids, job_id))
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def expired(self, volume_ids: Collection[UUID], schedule_id: UUID, keep: RetentionRule) -> Sequence[Snapshot]:
        """Lock a schedule's own snapshots that it does not keep; those that are in use wait for the next time.

        So do the newer ones where there are very many: it may have begun to delete after it had kept all for years.
        """
        newest = (Snapshot.created_at.desc(), Snapshot.id.desc())
        own = (
            select(Snapshot.id, func.row_number().over(partition_by=Snapshot.volume_id, order_by=newest).label("rank"))
            .where(
                Snapshot.volume_id.in_(volume_ids), Snapshot.schedule_id == schedule_id, Snapshot.state.in_(_RESTORABLE)
            )
            .subquery()
        )
        beyond = select(own.c.id).where(own.c.rank > max(keep.last or 0, 1))
        query = select(Snapshot).where(Snapshot.id.in_(beyond), Snapshot.state == SnapshotState.READY, _expired(keep))
        oldest = query.order_by(Snapshot.id).limit(_EXPIRED)
        return (await self._session.scalars(oldest.with_for_update(skip_locked=True))).all()

    async def acquire(self, job_ids: Mapping[UUID, UUID], state: SnapshotState) -> None:
        """Give locked snapshots into the hands of a job each."""
        rows = ({"snapshot_id": snapshot_id, "job_id": job_id} for snapshot_id, job_id in job_ids.items())
        given = given_rows(rows, snapshot_id=Uuid(), job_id=Uuid())
        query = (
            update(Snapshot)
            .where(Snapshot.id == given.c.snapshot_id)
            .values(state=state, job_id=given.c.job_id, version=Snapshot.version + 1, updated_at=func.now())
        )
        await self._session.execute(query.execution_options(synchronize_session=False))


async def refuse_if_it_has_snapshots(session: AsyncSession, volume_id: UUID) -> None:
    """Keep a volume from being deleted as long as it has snapshots.

    Raises:
        VolumeHasSnapshots: it has.
    """
    any_of_them = select(literal(1)).where(Snapshot.volume_id == volume_id).limit(1)
    if await session.scalar(any_of_them) is not None:
        raise VolumeHasSnapshots


def _a_live_clone(ended: Collection[UUID]) -> ColumnElement[UUID]:
    """Find a job that still makes a clone of the snapshot in question; null if there is none."""
    return (
        select(Job.id)
        .where(Job.snapshot_id == Snapshot.id, Job.kind == "snapshot.clone", Job.status.in_(LIVE))
        .where(Job.id.not_in(ended))
        .order_by(Job.id)
        .limit(1)
        .correlate(Snapshot)
        .scalar_subquery()
    )


def _given(endings: Sequence[SnapshotRelease]) -> TableValuedAlias:
    rows = (ending._asdict() for ending in endings)
    return given_rows(rows, snapshot_id=Uuid(), job_id=Uuid(), size=Snapshot.size.type)


def _of(volume_ids: Collection[UUID], job_id: UUID) -> ColumnElement[bool]:
    return and_(Snapshot.volume_id.in_(volume_ids), Snapshot.job_id == job_id)


def _expired(keep: RetentionRule) -> ColumnElement[bool]:
    if keep.days is None:
        return true()
    return Snapshot.created_at < func.now() - literal(timedelta(days=keep.days))
