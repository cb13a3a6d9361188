"""Queries on the table of snapshots. Takes a session, never commits."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    TableValuedAlias,
    Text,
    Uuid,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.base import find_owned
from domain.db.sql import array_rows
from domain.errors import NameTaken, SnapshotBusy, SnapshotNotFound, SnapshotUnusable, VolumeHasSnapshots
from domain.id_prefix import begins_with
from domain.jobs.kinds import JobKind
from domain.jobs.model import Job
from domain.jobs.states import LIVE
from domain.operations import BUSY, SNAPSHOT_MOVES, SnapshotState
from domain.snapshots.model import Snapshot
from domain.snapshots.retention import RetentionRule

#: States of a snapshot whose data is intact; it counts for retention even while it is in use.
_INTACT: Final = (SnapshotState.READY, SnapshotState.RESTORING, SnapshotState.CLONING)
#: Maximum number of expired snapshots locked at once: the transaction that deletes them must stay short.
_MAX_EXPIRED: Final = 5000


@dataclass(frozen=True)
class SnapshotFilter:
    """Filters of a list of snapshots; None matches any."""

    volume_id: UUID | None = None
    state: SnapshotState | None = None
    name: str | None = None
    id_prefix: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


class SnapshotRelease(NamedTuple):
    """A snapshot that its job releases, with its new size in bytes and what it is worth; None leaves it as it is."""

    snapshot_id: UUID
    job_id: UUID
    size: int | None
    consistency: str | None = None


class SnapshotRepository:
    """The table of snapshots, within one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, snapshot: Snapshot) -> Snapshot:
        """Insert a new snapshot.

        Raises:
            NameTaken: another snapshot of the volume has the name.
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

    async def get(self, snapshot_id: UUID, project_id: UUID) -> Snapshot:
        """Read one snapshot of a project.

        Raises:
            SnapshotNotFound: no such snapshot.
        """
        snapshot = await find_owned(self._session, Snapshot, snapshot_id, project_id)
        if snapshot is None:
            raise SnapshotNotFound(snapshot_id)
        return snapshot

    async def acquire(self, snapshot_id: UUID, project_id: UUID, state: SnapshotState, job_id: UUID) -> Snapshot:
        """Acquire a snapshot of a project for a job. The row stays locked.

        Raises:
            SnapshotNotFound: no such snapshot.
            SnapshotBusy, SnapshotUnusable: it cannot move to ``state`` now.
        """
        snapshot = await find_owned(self._session, Snapshot, snapshot_id, project_id, for_update=True)
        if snapshot is None:
            raise SnapshotNotFound(snapshot_id)
        if state not in SNAPSHOT_MOVES[snapshot.state]:
            if snapshot.state in BUSY:
                raise SnapshotBusy(job_id=snapshot.job_id, state=snapshot.state)
            raise SnapshotUnusable(state=snapshot.state)
        snapshot.state, snapshot.job_id = state, job_id
        snapshot.version += 1
        return snapshot

    async def raise_version(self, snapshot_id: UUID, job_id: UUID, *, above: int) -> None:
        """Increment the version of a snapshot that a job holds; it is then higher than ``above``."""
        query = update(Snapshot).where(Snapshot.id == snapshot_id, Snapshot.job_id == job_id)
        query = query.values(version=func.greatest(Snapshot.version, above) + 1)
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def page(
        self, filters: SnapshotFilter, project_id: UUID, *, before: UUID | None, limit: int
    ) -> Sequence[Snapshot]:
        """Read up to ``limit`` + 1 snapshots of a project, newest first; one more shows that there is a next page."""
        query = select(Snapshot).where(Snapshot.project_id == project_id).order_by(Snapshot.id.desc()).limit(limit + 1)
        if filters.volume_id is not None:
            query = query.where(Snapshot.volume_id == filters.volume_id)
        if filters.state is not None:
            query = query.where(Snapshot.state == filters.state)
        if filters.name is not None:
            query = query.where(Snapshot.name == filters.name)
        if filters.labels:
            query = query.where(Snapshot.labels.contains(filters.labels))
        if filters.id_prefix is not None:
            query = query.where(begins_with(Snapshot.id, filters.id_prefix))
        if before is not None:
            query = query.where(Snapshot.id < before)
        return (await self._session.scalars(query)).all()

    async def release(self, releases: Sequence[SnapshotRelease], state: SnapshotState) -> Sequence[UUID]:
        """Move snapshots to the idle ``state`` and clear their job; return the ids of those that it still held."""
        rows = _release_rows(releases)
        await self._lock_in_order([release.snapshot_id for release in releases])
        query = (
            update(Snapshot)
            .where(Snapshot.id == rows.c.snapshot_id, Snapshot.job_id == rows.c.job_id)
            .values(
                state=state,
                job_id=None,
                version=Snapshot.version + 1,
                size=func.coalesce(rows.c.size, Snapshot.size),
                consistency=func.coalesce(rows.c.consistency, Snapshot.consistency),
                updated_at=func.now(),
            )
            .returning(Snapshot.id)
            .execution_options(synchronize_session=False)
        )
        return (await self._session.scalars(query)).all()

    async def release_after_clones(self, snapshot_ids: Collection[UUID], *, ended: Collection[UUID]) -> Sequence[UUID]:
        """Release snapshots of which ``ended`` were the last clone jobs; return the ids of those in state ``cloning``.

        The rows are locked by a separate statement, because only a statement that starts after the lock is granted sees
        the clone jobs that another transaction committed while it held the lock. An UPDATE that waits for a lock
        re-reads its own row only, not the table of jobs.
        """
        await self._lock_in_order(snapshot_ids)
        live = _live_clone_job(ended)
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

    async def remove(self, releases: Sequence[SnapshotRelease]) -> Sequence[UUID]:
        """Delete the rows of deleted snapshots; return the ids of those that their job still held."""
        rows = _release_rows(releases)
        await self._lock_in_order([release.snapshot_id for release in releases])
        query = (
            delete(Snapshot)
            .where(Snapshot.id == rows.c.snapshot_id, Snapshot.job_id == rows.c.job_id)
            .returning(Snapshot.id)
            .execution_options(synchronize_session=False)
        )
        return (await self._session.scalars(query)).all()

    async def _lock_in_order(self, snapshot_ids: Collection[UUID]) -> None:
        """Lock by id: an UPDATE locks rows in the order in which it finds them, so two of them could deadlock."""
        query = select(Snapshot.id).where(Snapshot.id.in_(snapshot_ids)).order_by(Snapshot.id)
        await self._session.execute(query.with_for_update())


class BulkSnapshotRepository:
    """Queries of bulk jobs on the table of snapshots, within one transaction; each covers a whole chunk of items.

    A bulk job holds at most one snapshot of each volume that it holds, so the volume's id identifies the snapshot.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def volumes_with(self, name: str, volume_ids: Collection[UUID]) -> set[UUID]:
        """Return which of these volumes have a snapshot of that name; stable while the volumes' rows are locked."""
        query = select(Snapshot.volume_id).where(Snapshot.volume_id.in_(volume_ids), Snapshot.name == name)
        return set((await self._session.scalars(query)).all())

    async def add(self, snapshots: Sequence[Snapshot]) -> None:
        """Insert new snapshots; their names must be free."""
        if snapshots:
            names = (
                *("id", "project_id", "volume_id", "name", "state", "size", "version", "job_id", "schedule_id"),
                "labels",
            )
            rows = [{name: getattr(snapshot, name) for name in names} for snapshot in snapshots]
            await self._session.execute(insert(Snapshot), rows)

    async def held_by(self, job_id: UUID, volume_ids: Collection[UUID]) -> dict[UUID, tuple[UUID, int]]:
        """Return the ids and versions of the snapshots of these volumes that a job holds, by volume id."""
        query = select(Snapshot.volume_id, Snapshot.id, Snapshot.version).where(_is_held_by(job_id, volume_ids))
        return {row.volume_id: (row.id, row.version) for row in await self._session.execute(query)}

    async def raise_versions(self, volume_ids: Collection[UUID], job_id: UUID, *, above: int = 0) -> None:
        """Raise the versions of snapshots that a job holds, so that its new fences supersede its old ones.

        Each is incremented, and is then higher than ``above``.
        """
        raised = func.greatest(Snapshot.version, above) + 1
        query = update(Snapshot).where(_is_held_by(job_id, volume_ids)).values(version=raised)
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def discard(self, volume_ids: Collection[UUID], job_id: UUID) -> None:
        """Delete the rows of snapshots that a job holds and of which nothing exists on the backend."""
        query = delete(Snapshot).where(_is_held_by(job_id, volume_ids))
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def lock_expired(
        self, volume_ids: Collection[UUID], schedule_id: UUID, keep: RetentionRule
    ) -> Sequence[Snapshot]:
        """Lock a schedule's own snapshots that its retention rule does not keep, oldest first.

        Of these volumes, which have a new snapshot, it keeps none that failed: each would block their deletion.

        Left for the next run: (1) snapshots in use or locked, and (2) all beyond the oldest 5000, which exist if the
        schedule got its retention rule only after years of keeping everything.
        """
        newest = (Snapshot.created_at.desc(), Snapshot.id.desc())
        own = (
            select(Snapshot.id, func.row_number().over(partition_by=Snapshot.volume_id, order_by=newest).label("rank"))
            .where(Snapshot.volume_id.in_(volume_ids), Snapshot.schedule_id == schedule_id, Snapshot.state.in_(_INTACT))
            .subquery()
        )
        beyond = select(own.c.id).where(own.c.rank > max(keep.last or 0, 1))
        expired = and_(Snapshot.id.in_(beyond), Snapshot.state == SnapshotState.READY, _is_old_enough(keep))
        failed = and_(
            Snapshot.volume_id.in_(volume_ids),
            Snapshot.schedule_id == schedule_id,
            Snapshot.state == SnapshotState.ERROR,
        )
        oldest = select(Snapshot).where(or_(expired, failed)).order_by(Snapshot.id).limit(_MAX_EXPIRED)
        return (await self._session.scalars(oldest.with_for_update(skip_locked=True))).all()

    async def acquire_each(self, job_ids: Mapping[UUID, UUID], state: SnapshotState) -> Sequence[Snapshot]:
        """Acquire locked snapshots, each for its own job, and return them; ``job_ids`` maps snapshot to job ids."""
        pairs = ({"snapshot_id": snapshot_id, "job_id": job_id} for snapshot_id, job_id in job_ids.items())
        rows = array_rows(pairs, snapshot_id=Uuid(), job_id=Uuid())
        query = (
            update(Snapshot)
            .where(Snapshot.id == rows.c.snapshot_id)
            .values(state=state, job_id=rows.c.job_id, version=Snapshot.version + 1, updated_at=func.now())
            .returning(Snapshot)
            .execution_options(synchronize_session=False, populate_existing=True)
        )
        return (await self._session.scalars(query)).all()


async def refuse_if_it_has_snapshots(session: AsyncSession, volume_id: UUID) -> None:
    """Refuse the deletion of a volume that has snapshots.

    Raises:
        VolumeHasSnapshots: it has at least one.
    """
    any_snapshot = select(literal(1)).where(Snapshot.volume_id == volume_id).limit(1)
    if await session.scalar(any_snapshot) is not None:
        raise VolumeHasSnapshots


def _live_clone_job(ended: Collection[UUID]) -> ColumnElement[UUID]:
    """Select a live job that clones the snapshot of the outer query, other than ``ended``; null if there is none."""
    return (
        select(Job.id)
        .where(Job.snapshot_id == Snapshot.id, Job.kind == JobKind.SNAPSHOT_CLONE, Job.status.in_(LIVE))
        .where(Job.id.not_in(ended))
        .order_by(Job.id)
        .limit(1)
        .correlate(Snapshot)
        .scalar_subquery()
    )


def _release_rows(releases: Sequence[SnapshotRelease]) -> TableValuedAlias:
    rows = (release._asdict() for release in releases)
    return array_rows(rows, snapshot_id=Uuid(), job_id=Uuid(), size=Snapshot.size.type, consistency=Text())


def _is_held_by(job_id: UUID, volume_ids: Collection[UUID]) -> ColumnElement[bool]:
    return and_(Snapshot.volume_id.in_(volume_ids), Snapshot.job_id == job_id)


def _is_old_enough(keep: RetentionRule) -> ColumnElement[bool]:
    if keep.days is None:
        return true()
    return Snapshot.created_at < func.now() - literal(timedelta(days=keep.days))
