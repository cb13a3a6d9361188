"""Reads volumes and snapshots together with the jobs that hold them, page by page. Takes a session, never commits."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from domain.bulk.model import FINISHED, Item
from domain.jobs.kinds import BULK_KINDS, JobKind
from domain.jobs.model import Job
from domain.jobs.states import LIVE
from domain.operations import BUSY, OPERATIONS, Published, SnapshotState, VolumeState
from domain.snapshots.model import Snapshot
from domain.storage.context import Fence
from domain.volumes.model import Volume

#: Number of volumes or jobs read at once.
PAGE: Final = 1000


class Holder(NamedTuple):
    """The live job that holds a volume or snapshot.

    ``fence`` is the one under which it publishes this subject, None if it only excludes other jobs.
    ``fence_in_params`` if that fence is stored in the job's parameters. ``leased`` while a worker may be working on it.
    """

    job_id: UUID
    version: int
    fence: Fence | None
    fence_in_params: bool
    leased: bool


@dataclass(frozen=True)
class RowState:
    """The row of a volume or snapshot as it was read; two reads are equal if nothing has changed in between."""

    id: UUID
    volume_id: UUID
    state: VolumeState | SnapshotState
    version: int
    size: int
    job_id: UUID | None
    holder: Holder | None

    @property
    def is_volume(self) -> bool:
        """Whether this is a volume; otherwise it is a snapshot of one."""
        return self.id == self.volume_id

    @property
    def at_rest(self) -> bool:
        """Whether it is in an idle state and names no job."""
        return self.state not in BUSY and self.job_id is None

    @property
    def must_have_data(self) -> bool:
        """Whether its data must exist and have the size of the row."""
        return self.at_rest and self.state in (VolumeState.AVAILABLE, SnapshotState.READY)


@dataclass(frozen=True)
class VolumeRows:
    """The rows of a volume and its snapshots."""

    volume: RowState
    backend: str
    snapshots: Mapping[UUID, RowState]


class _HolderJob(NamedTuple):
    id: UUID
    kind: str
    version: int
    fence: int
    epoch: int
    volume_id: UUID | None
    snapshot_id: UUID | None
    leased: bool


class CheckRepository:
    """Rows as the check needs them, read in one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def page(self, after: UUID | None, limit: int) -> list[VolumeRows]:
        """Read ``limit`` volumes in ascending order of id."""
        query = select(Volume).order_by(Volume.id).limit(limit)
        return await self._read(query if after is None else query.where(Volume.id > after))

    async def get_many(self, volume_ids: Collection[UUID]) -> dict[UUID, VolumeRows]:
        """Read those of the volumes that exist."""
        found = await self._read(select(Volume).where(Volume.id.in_(volume_ids)))
        return {rows.volume.id: rows for rows in found}

    async def known(self, backend: str, volume_ids: Collection[UUID]) -> set[UUID]:
        """Return those of the ids that are volumes of the backend, or that a live job refers to."""
        rows = select(Volume.id).where(Volume.id.in_(volume_ids), Volume.backend == backend)
        jobs = select(Job.volume_id).where(Job.volume_id.in_(volume_ids), Job.status.in_(LIVE))
        return set((await self._session.scalars(rows.union(jobs))).all())

    async def _read(self, query: Any) -> list[VolumeRows]:
        volumes: Sequence[Volume] = (await self._session.scalars(query)).all()
        query = select(Snapshot).where(Snapshot.volume_id.in_([volume.id for volume in volumes]))
        snapshots: Sequence[Snapshot] = (await self._session.scalars(query)).all()
        jobs = await self._holder_jobs({row.job_id for row in volumes} | {row.job_id for row in snapshots})
        epochs = await self._lane_epochs(volumes, jobs)
        cloned = await self._snapshots_being_cloned(snapshots)
        by_volume: dict[UUID, dict[UUID, RowState]] = {volume.id: {} for volume in volumes}
        for row in snapshots:
            holder = _holder_of_snapshot(row, jobs, epochs, cloned)
            by_volume[row.volume_id][row.id] = _row_state(row, row.volume_id, holder)
        return [
            VolumeRows(_row_state(row, row.id, _holder_of_volume(row, jobs, epochs)), row.backend, by_volume[row.id])
            for row in volumes
        ]

    async def _holder_jobs(self, job_ids: Collection[UUID | None]) -> dict[UUID | None, _HolderJob]:
        leased = func.coalesce(Job.lease_expires_at > func.now(), False)
        columns = (Job.id, Job.kind, Job.version, Job.params["fence_version"].as_integer(), Job.epoch)
        query = select(*columns, Job.volume_id, Job.snapshot_id, leased).where(Job.status.in_(LIVE))
        rows = await self._session.execute(query.where(Job.id.in_(filter(None, job_ids))))
        return {row[0]: _HolderJob(*row) for row in rows}

    async def _lane_epochs(
        self, volumes: Sequence[Volume], jobs: Mapping[UUID | None, _HolderJob]
    ) -> dict[tuple[UUID, UUID], int]:
        """Return the epoch of the lane for each unfinished item of a volume that a bulk job holds."""
        held = [(row.job_id, row.id) for row in volumes if row.job_id in jobs and jobs[row.job_id].kind in BULK_KINDS]
        lane = aliased(Job)
        query = (
            select(Item.job_id, Item.volume_id, func.coalesce(lane.epoch, 0))
            .outerjoin(lane, lane.id == Item.lane_id)
            .where(tuple_(Item.job_id, Item.volume_id).in_(held), Item.status.not_in(FINISHED))
        )
        return {(row[0], row[1]): row[2] for row in await self._session.execute(query)} if held else {}

    async def _snapshots_being_cloned(self, snapshots: Sequence[Snapshot]) -> set[UUID | None]:
        """Return the ids of the snapshots that live jobs are cloning."""
        ids = [row.id for row in snapshots if row.state is SnapshotState.CLONING]
        clones = select(Job.snapshot_id).where(Job.kind == JobKind.SNAPSHOT_CLONE, Job.status.in_(LIVE))
        return set((await self._session.scalars(clones.where(Job.snapshot_id.in_(ids)))).all())


def _row_state(row: Volume | Snapshot, volume_id: UUID, holder: Holder | None) -> RowState:
    return RowState(row.id, volume_id, row.state, row.version, row.size, row.job_id, holder)


def _holder_of_volume(
    row: Volume, jobs: Mapping[UUID | None, _HolderJob], epochs: Mapping[tuple[UUID, UUID], int]
) -> Holder | None:
    job = jobs.get(row.job_id)
    if job is not None and (job.id, row.id) in epochs:
        fence = Fence(row.version, epochs[job.id, row.id]) if job.kind == JobKind.BULK_EXPAND else None
        return Holder(job.id, 0, fence, fence_in_params=False, leased=False)
    if job is None or job.volume_id != row.id:
        return None
    fence = None if _publishes_snapshot(job) else Fence(job.fence, job.epoch)
    return Holder(job.id, job.version, fence, fence_in_params=fence is not None, leased=job.leased)


def _holder_of_snapshot(
    row: Snapshot,
    jobs: Mapping[UUID | None, _HolderJob],
    epochs: Mapping[tuple[UUID, UUID], int],
    cloned: Collection[UUID | None],
) -> Holder | None:
    if row.state is SnapshotState.CLONING:
        shared = Holder(row.job_id or row.id, 0, None, fence_in_params=False, leased=False)
        return shared if row.id in cloned else None
    job = jobs.get(row.job_id)
    if job is not None and (job.id, row.volume_id) in epochs:
        fence = Fence(row.version, epochs[job.id, row.volume_id])
        return Holder(job.id, 0, fence, fence_in_params=False, leased=False)
    if job is None or job.snapshot_id != row.id:
        return None
    published = Fence(job.fence, job.epoch) if _publishes_snapshot(job) else None
    return Holder(job.id, job.version, published, fence_in_params=published is not None, leased=job.leased)


def _publishes_snapshot(job: _HolderJob) -> bool:
    """Return whether a job publishes its snapshot; all others publish the volume that they hold."""
    return job.kind in OPERATIONS and OPERATIONS[job.kind].publishes is Published.SNAPSHOT
