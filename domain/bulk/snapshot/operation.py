"""What lanes of a bulk snapshot do with their volumes: name a snapshot of each, and take it.

A snapshot that comes to nothing leaves no row behind, as nobody was told of it; only if there may be something of it on
the storage it stays, as an ``error`` that can be deleted.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.bulk.ledger import ItemRef, ItemUpdate, Lane
from domain.bulk.operation import ItemWork, Result
from domain.bulk.states import ItemCode, ItemStatus
from domain.snapshots.expiry import Expiry
from domain.snapshots.model import Snapshot
from domain.snapshots.repository import BulkSnapshotRepository, SnapshotRelease, SnapshotRepository
from domain.snapshots.retention import RetentionRule
from domain.snapshots.states import SnapshotState
from domain.storage.backends import Backends
from domain.storage.context import Grant
from domain.volumes.repository import LockedVolume, Release, VolumeRepository
from domain.volumes.states import VolumeState

#: What lanes must know of the whole.
_TERMS: Final = ("snapshot_name", "schedule_id", "keep_last", "keep_days")


class SnapshotOperation:
    """An `Operation`: a snapshot is taken of each volume, which is as before then."""

    state: Final = VolumeState.SNAPSHOTTING
    success_code: Final = ItemCode.SNAPSHOTTED

    def __init__(self, backends: Backends, snapshots: Expiry) -> None:
        self._backends = backends
        self._snapshots = snapshots

    def lane_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Lanes must know the name, and what is kept."""
        return {name: params[name] for name in _TERMS}

    def measures(self, _: Mapping[str, Any]) -> bool:
        """Nothing depends on what is in use."""
        return False

    async def measure(self, _: Sequence[ItemRef]) -> dict[UUID, int]:
        """Nothing depends on what is in use."""
        return {}

    async def decide(
        self, session: AsyncSession, lane: Lane, volumes: Sequence[tuple[ItemRef, LockedVolume]], _: Mapping[UUID, int]
    ) -> list[ItemUpdate]:
        """Take a snapshot of every volume that has none of this name."""
        name = lane.params["snapshot_name"]
        named = await BulkSnapshotRepository(session).named([volume.id for _, volume in volumes], name)
        return [_taken(volume, name) if volume.id in named else _to_take(volume) for _, volume in volumes]

    async def begin(
        self,
        session: AsyncSession,
        lane: Lane,
        volumes: Sequence[tuple[ItemUpdate, LockedVolume]],
        newly_taken: Mapping[UUID, int],
    ) -> list[ItemWork]:
        """Write the snapshots down that are to be; a predecessor's are there already."""
        snapshots = BulkSnapshotRepository(session)
        await snapshots.add([_new_snapshot(volume, lane) for _, volume in volumes if volume.id in newly_taken])
        held = await snapshots.acquired_by([volume.id for _, volume in volumes], lane.job_id)
        return [
            _task(entry, volume, held[volume.id], resumed=volume.id not in newly_taken) for entry, volume in volumes
        ]

    async def perform(self, task: ItemWork, grant: Grant) -> int | None:
        """Keep the volume's bytes on its backend."""
        driver = self._backends.get(task.backend)
        return await driver.take_snapshot(task.volume_id, _snapshot_id(task), grant)

    async def seal(self, task: ItemWork, entry: ItemUpdate, grant: Grant) -> Result:
        """See whether anything is there, now that nobody can take the snapshot any more."""
        driver = self._backends.get(task.backend)
        size = await driver.seal_snapshot(task.volume_id, _snapshot_id(task), grant)
        return Result(entry._replace(snapshot_id=None) if size is None else entry)

    async def record(
        self, session: AsyncSession, lane: Lane, items: Sequence[ItemUpdate], sizes: Mapping[UUID, int | None]
    ) -> None:
        """The snapshots are there, with the sizes that they got, or in error, or nothing; the volumes are as before."""
        await _let_go_of_volumes(session, lane.job_id, items)
        made = [item for item in items if item.status is ItemStatus.SUCCEEDED]
        broken = [item for item in items if item.status is not ItemStatus.SUCCEEDED]
        snapshots = SnapshotRepository(session)
        await snapshots.release(_endings(lane.job_id, made, sizes), SnapshotState.READY)
        await snapshots.release(_endings(lane.job_id, broken, {}), SnapshotState.ERROR)
        nothing = [item.volume_id for item in broken if item.snapshot_id is None]
        await BulkSnapshotRepository(session).discard(nothing, lane.job_id)
        await self._delete_expired(session, lane, [item.volume_id for item in made])

    async def raise_fences(self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef]) -> None:
        """It is the snapshots that are published."""
        await BulkSnapshotRepository(session).raise_versions([item.volume_id for item in items], job_id)

    async def give_up(self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef]) -> None:
        """Nobody knows what is there of the snapshots; the volumes are as before."""
        await _let_go_of_volumes(session, job_id, items)
        await SnapshotRepository(session).release(_endings(job_id, items, {}), SnapshotState.ERROR)

    async def _delete_expired(self, session: AsyncSession, lane: Lane, volume_ids: Sequence[UUID]) -> None:
        """Have the schedule delete what it does not keep of volumes that have a new snapshot."""
        keep, schedule_id = RetentionRule(lane.params["keep_last"], lane.params["keep_days"]), _schedule_id(lane)
        if schedule_id is not None and keep.named is not None:
            await self._snapshots.expire(session, volume_ids, schedule_id, keep, caller=lane.created_by)


async def _let_go_of_volumes(session: AsyncSession, job_id: UUID, items: Sequence[ItemUpdate | ItemRef]) -> None:
    endings = [Release(item.volume_id, job_id, None) for item in items]
    await VolumeRepository(session).release(endings, VolumeState.AVAILABLE)


def _endings(
    job_id: UUID, items: Sequence[ItemUpdate | ItemRef], sizes: Mapping[UUID, int | None]
) -> list[SnapshotRelease]:
    return [
        SnapshotRelease(item.snapshot_id, job_id, sizes.get(item.volume_id))
        for item in items
        if item.snapshot_id is not None
    ]


def _to_take(volume: LockedVolume) -> ItemUpdate:
    return ItemUpdate(volume.id, ItemStatus.CLAIMED, from_size=volume.size)


def _taken(volume: LockedVolume, name: str) -> ItemUpdate:
    detail = f"The volume already has a snapshot named {name!r}."
    return ItemUpdate(volume.id, ItemStatus.FAILED, ItemCode.NAME_TAKEN, detail, from_size=volume.size)


def _new_snapshot(volume: LockedVolume, lane: Lane) -> Snapshot:
    return Snapshot(
        id=uuid7(),
        volume_id=volume.id,
        name=lane.params["snapshot_name"],
        state=SnapshotState.TAKING,
        size=volume.size,
        version=1,
        job_id=lane.job_id,
        schedule_id=_schedule_id(lane),
    )


def _task(entry: ItemUpdate, volume: LockedVolume, held: tuple[UUID, int], *, resumed: bool) -> ItemWork:
    snapshot_id, version = held
    return ItemWork(entry._replace(snapshot_id=snapshot_id), volume.backend, version, resumed)


def _snapshot_id(task: ItemWork) -> UUID:
    if task.entry.snapshot_id is None:
        raise RuntimeError(f"volume {task.volume_id} was taken without a snapshot to be")
    return task.entry.snapshot_id


def _schedule_id(lane: Lane) -> UUID | None:
    given = lane.params["schedule_id"]
    return None if given is None else UUID(given)
