"""Reads volumes and snapshots together with the jobs that hold them, page by page."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Double, Row, Select, case, cast, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from domain.bulk.model import FINISHED, Item
from domain.db.database import Database
from domain.jobs.kinds import BULK_KINDS, JobKind
from domain.jobs.model import Job
from domain.jobs.states import LIVE
from domain.operations import BUSY, OPERATIONS, Published, SnapshotState, VolumeState
from domain.snapshots.model import Snapshot
from domain.storage.context import Fence
from domain.volumes.model import Volume

#: Number of volumes or jobs read at once.
PAGE: Final = 1000
#: Below every id: where the first page starts.
FIRST: Final = UUID(int=0)


@dataclass(frozen=True)
class Holder:
    """The live job that holds a volume or snapshot.

    ``fence`` is the one under which it publishes this subject, None if it only excludes other jobs.
    ``fence_in_params`` if that fence is stored in the job's parameters. ``leased_seconds`` is how long a worker may
    still be working on it, unless it extends its lease; two reads are equal although this differs.
    """

    job_id: UUID
    version: int
    fence: Fence | None = None
    fence_in_params: bool = False
    leased_seconds: float = field(default=0.0, compare=False)


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
    name: str = field(default="", compare=False)

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


class RowReader:
    """Reads rows as the check needs them, each time in a transaction of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, after: UUID) -> list[VolumeRows]:
        """Read the next volumes in ascending order of id."""
        return await self._read(select(Volume).where(Volume.id > after).order_by(Volume.id).limit(PAGE))

    async def get_many(self, volume_ids: Collection[UUID]) -> list[VolumeRows]:
        """Read those of the volumes that exist."""
        return await self._read(select(Volume).where(Volume.id.in_(volume_ids)))

    async def unknown(self, backend: str, volume_ids: Collection[UUID]) -> list[UUID]:
        """Return those of the ids that are neither volumes of the backend nor named by a live job."""
        rows = select(Volume.id).where(Volume.id.in_(volume_ids), Volume.backend == backend)
        jobs = select(Job.volume_id).where(Job.volume_id.in_(volume_ids), Job.status.in_(LIVE))
        async with self._database.transaction() as session:
            known = set((await session.scalars(rows.union(jobs))).all())
        return [volume_id for volume_id in volume_ids if volume_id not in known]

    async def _read(self, query: Select[Volume]) -> list[VolumeRows]:
        async with self._database.transaction() as session:
            volumes = (await session.scalars(query)).all()
            of_volumes = Snapshot.volume_id.in_([volume.id for volume in volumes])
            snapshots = (await session.scalars(select(Snapshot).where(of_volumes))).all()
            holders = await _read_holders(session, volumes, snapshots)
        by_volume: dict[UUID, dict[UUID, RowState]] = {volume.id: {} for volume in volumes}
        for row in snapshots:
            by_volume[row.volume_id][row.id] = _row_state(row, row.volume_id, holders)
        return [VolumeRows(_row_state(row, row.id, holders), row.backend, by_volume[row.id]) for row in volumes]


class _Holders(NamedTuple):
    """The live jobs that hold some volumes and snapshots."""

    #: By id.
    jobs: Mapping[UUID | None, Row[Any]]
    #: The epoch of the lane of each unfinished item, by bulk job and volume.
    lane_epochs: Mapping[tuple[UUID, UUID], int]
    #: The snapshots that live jobs are cloning.
    cloned: Collection[UUID | None]

    def of(self, row: Volume | Snapshot, volume_id: UUID) -> Holder | None:
        """Return the holder of a row; None if no live job holds it."""
        if row.state is SnapshotState.CLONING:
            return Holder(row.job_id or row.id, 0) if row.id in self.cloned else None
        job = self.jobs.get(row.job_id)
        if job is None:
            return None
        is_volume = row.id == volume_id
        publishes = _published(job.kind) is (Published.VOLUME if is_volume else Published.SNAPSHOT)
        if (job.id, volume_id) in self.lane_epochs:
            return Holder(job.id, 0, Fence(row.version, self.lane_epochs[job.id, volume_id]) if publishes else None)
        if is_volume and str(row.id) == job.source_id:
            return Holder(job.id, job.version, leased_seconds=job.leased_seconds)
        if row.id != (job.volume_id if is_volume else job.snapshot_id):
            return None
        fence = Fence(job.fence_version, job.epoch) if publishes else None
        return Holder(job.id, job.version, fence, fence_in_params=publishes, leased_seconds=job.leased_seconds)


def _row_state(row: Volume | Snapshot, volume_id: UUID, holders: _Holders) -> RowState:
    holder = holders.of(row, volume_id)
    return RowState(row.id, volume_id, row.state, row.version, row.size, row.job_id, holder, row.name)


async def _read_holders(session: AsyncSession, volumes: Sequence[Volume], snapshots: Sequence[Snapshot]) -> _Holders:
    job_ids = ({row.job_id for row in volumes} | {row.job_id for row in snapshots}) - {None}
    columns = (Job.id, Job.kind, Job.version, Job.epoch, Job.volume_id, Job.snapshot_id)
    fence_version = Job.params["fence_version"].as_integer().label("fence_version")
    remaining = func.extract("epoch", Job.lease_expires_at - func.now())
    leased_seconds = cast(func.greatest(remaining, 0.0), Double).label("leased_seconds")
    clones = Job.kind == JobKind.VOLUME_CLONE
    source_id = case((clones, Job.params["of_volume"].as_string())).label("source_id")
    query = select(*columns, fence_version, leased_seconds, source_id).where(Job.status.in_(LIVE), Job.id.in_(job_ids))
    jobs = {row.id: row for row in await session.execute(query)}

    cloning = [row.id for row in snapshots if row.state is SnapshotState.CLONING]
    cloning_jobs = select(Job.snapshot_id).where(Job.kind == JobKind.SNAPSHOT_CLONE, Job.status.in_(LIVE))
    cloned = set((await session.scalars(cloning_jobs.where(Job.snapshot_id.in_(cloning)))).all())

    held = [(row.job_id, row.id) for row in volumes if row.job_id in jobs and jobs[row.job_id].kind in BULK_KINDS]
    return _Holders(jobs, await _read_lane_epochs(session, held) if held else {}, cloned)


async def _read_lane_epochs(session: AsyncSession, held: Sequence[tuple[UUID | None, UUID]]) -> dict[Any, int]:
    lane = aliased(Job)
    query = (
        select(Item.job_id, Item.volume_id, func.coalesce(lane.epoch, 0))
        .outerjoin(lane, lane.id == Item.lane_id)
        .where(tuple_(Item.job_id, Item.volume_id).in_(held), Item.status.not_in(FINISHED))
    )
    return {(row[0], row[1]): row[2] for row in await session.execute(query)}


def _published(kind: str) -> Published:
    """Return what a job of this kind publishes; unless it is known to be a snapshot, the volume that it holds."""
    if kind in OPERATIONS:
        return OPERATIONS[kind].publishes
    return Published.SNAPSHOT if kind == JobKind.BULK_SNAPSHOT else Published.VOLUME
