"""Reads volumes and snapshots together with the jobs that have them, by pages. Takes a session, never commits."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from domain.bulk.kinds import BULK_KINDS, EXPAND
from domain.bulk.model import Item
from domain.bulk.states import FINISHED
from domain.jobs.model import Job
from domain.jobs.states import LIVE
from domain.snapshots.model import Snapshot
from domain.snapshots.states import IDLE as SNAPSHOT_IDLE
from domain.snapshots.states import SnapshotState
from domain.storage.context import Fence
from domain.volumes.model import Volume
from domain.volumes.states import IDLE as VOLUME_IDLE
from domain.volumes.states import VolumeState

#: So many volumes or jobs are looked at together.
PAGE: Final = 1000
CLONE: Final = "snapshot.clone"
#: Kinds that publish the snapshot; all others publish the volume that they have.
OF_THE_SNAPSHOT: Final = frozenset({"snapshot.take", "snapshot.delete"})


class Holder(NamedTuple):
    """The live job that has a volume or snapshot in its hands.

    ``fence``: under which it publishes just this, None if it only keeps it from others; ``named`` if that fence is
    written down in the job. ``leased`` while a worker may be at it.
    """

    job_id: UUID
    version: int
    fence: Fence | None
    named: bool
    leased: bool


@dataclass(frozen=True)
class RowState:
    """A volume's or snapshot's row at some moment; equal to another of the same if nothing has moved in between."""

    id: UUID
    volume_id: UUID
    state: VolumeState | SnapshotState
    version: int
    size: int
    job_id: UUID | None
    hold: Holder | None

    @property
    def is_volume(self) -> bool:
        """Whether it is a volume; else it is a snapshot of one."""
        return self.id == self.volume_id

    @property
    def rests(self) -> bool:
        """Whether it is in a state without a job, and has none."""
        return self.state in (VOLUME_IDLE | SNAPSHOT_IDLE) and self.job_id is None

    @property
    def whole(self) -> bool:
        """Whether its data has to be there and as large as the row says."""
        return self.rests and self.state in (VolumeState.AVAILABLE, SnapshotState.READY)


@dataclass(frozen=True)
class VolumeRows:
    """A volume and its snapshots."""

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
    """Rows as an inspection needs them, seen from one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def page(self, after: UUID | None, limit: int) -> list[VolumeRows]:
        """Read ``limit`` volumes, upwards by id."""
        query = select(Volume).order_by(Volume.id).limit(limit)
        return await self._shelves(query if after is None else query.where(Volume.id > after))

    async def among(self, volume_ids: Collection[UUID]) -> dict[UUID, VolumeRows]:
        """Read these volumes, as far as they exist."""
        shelves = await self._shelves(select(Volume).where(Volume.id.in_(volume_ids)))
        return {shelf.volume.id: shelf for shelf in shelves}

    async def known(self, backend: str, volume_ids: Collection[UUID]) -> set[UUID]:
        """Tell which of these are volumes of the backend, or what a live job is about."""
        rows = select(Volume.id).where(Volume.id.in_(volume_ids), Volume.backend == backend)
        jobs = select(Job.volume_id).where(Job.volume_id.in_(volume_ids), Job.status.in_(LIVE))
        return set((await self._session.scalars(rows.union(jobs))).all())

    async def _shelves(self, query: Any) -> list[VolumeRows]:
        volumes: Sequence[Volume] = (await self._session.scalars(query)).all()
        query = select(Snapshot).where(Snapshot.volume_id.in_([one.id for one in volumes]))
        snapshots: Sequence[Snapshot] = (await self._session.scalars(query)).all()
        holders = await self._holders({one.job_id for one in volumes} | {one.job_id for one in snapshots})
        epochs = await self._lane_epochs(volumes, holders)
        cloning = await self._cloning(snapshots)
        by_volume: dict[UUID, dict[UUID, RowState]] = {one.id: {} for one in volumes}
        for one in snapshots:
            by_volume[one.volume_id][one.id] = _seen(
                one, one.volume_id, _hold_of_snapshot(one, holders, epochs, cloning)
            )
        return [
            VolumeRows(_seen(one, one.id, _hold_of_volume(one, holders, epochs)), one.backend, by_volume[one.id])
            for one in volumes
        ]

    async def _holders(self, job_ids: Collection[UUID | None]) -> dict[UUID | None, _HolderJob]:
        leased = func.coalesce(Job.lease_expires_at > func.now(), False)
        columns = (Job.id, Job.kind, Job.version, Job.params["fence"].as_integer(), Job.epoch)
        query = select(*columns, Job.volume_id, Job.snapshot_id, leased).where(Job.status.in_(LIVE))
        rows = await self._session.execute(query.where(Job.id.in_(filter(None, job_ids))))
        return {row[0]: _HolderJob(*row) for row in rows}

    async def _lane_epochs(
        self, volumes: Sequence[Volume], holders: Mapping[UUID | None, _HolderJob]
    ) -> dict[tuple[UUID, UUID], int]:
        """Find the unfinished items of volumes that bulk jobs have, and at which ring their lanes are."""
        held = [
            (one.job_id, one.id) for one in volumes if one.job_id in holders and holders[one.job_id].kind in BULK_KINDS
        ]
        lane = aliased(Job)
        query = (
            select(Item.job_id, Item.volume_id, func.coalesce(lane.epoch, 0))
            .outerjoin(lane, lane.id == Item.lane_id)
            .where(tuple_(Item.job_id, Item.volume_id).in_(held), Item.status.not_in(FINISHED))
        )
        return {(row[0], row[1]): row[2] for row in await self._session.execute(query)} if held else {}

    async def _cloning(self, snapshots: Sequence[Snapshot]) -> set[UUID | None]:
        """Tell of which snapshots clones are being made."""
        ids = [one.id for one in snapshots if one.state is SnapshotState.CLONING]
        query = select(Job.snapshot_id).where(Job.snapshot_id.in_(ids), Job.kind == CLONE, Job.status.in_(LIVE))
        return set((await self._session.scalars(query)).all())


def _seen(row: Volume | Snapshot, volume_id: UUID, hold: Holder | None) -> RowState:
    return RowState(row.id, volume_id, row.state, row.version, row.size, row.job_id, hold)


def _hold_of_volume(
    row: Volume, holders: Mapping[UUID | None, _HolderJob], epochs: Mapping[tuple[UUID, UUID], int]
) -> Holder | None:
    job = holders.get(row.job_id)
    if job is not None and (job.id, row.id) in epochs:
        fence = Fence(row.version, epochs[job.id, row.id]) if job.kind == EXPAND else None
        return Holder(job.id, 0, fence, named=False, leased=False)
    if job is None or job.volume_id != row.id:
        return None
    fence = None if job.kind in OF_THE_SNAPSHOT else Fence(job.fence, job.epoch)
    return Holder(job.id, job.version, fence, named=fence is not None, leased=job.leased)


def _hold_of_snapshot(
    row: Snapshot,
    holders: Mapping[UUID | None, _HolderJob],
    epochs: Mapping[tuple[UUID, UUID], int],
    cloning: Collection[UUID | None],
) -> Holder | None:
    if row.state is SnapshotState.CLONING:
        return Holder(row.job_id or row.id, 0, None, named=False, leased=False) if row.id in cloning else None
    job = holders.get(row.job_id)
    if job is not None and (job.id, row.volume_id) in epochs:
        return Holder(job.id, 0, Fence(row.version, epochs[job.id, row.volume_id]), named=False, leased=False)
    if job is None or job.snapshot_id != row.id:
        return None
    fence = Fence(job.fence, job.epoch) if job.kind in OF_THE_SNAPSHOT else None
    return Holder(job.id, job.version, fence, named=fence is not None, leased=job.leased)
