"""What lanes of a bulk snapshot do with their volumes: name a snapshot of each, and take it.

A snapshot that comes to nothing leaves no row behind, as nobody was told of it; only if there may be something of it on
the storage it stays, as an ``error`` that can be deleted.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.bulk.ledger import Entry, Lane, Line
from domain.bulk.operation import Result, Task
from domain.bulk.states import Code, ItemStatus
from domain.snapshots.keeping import Keeping
from domain.snapshots.model import Snapshot
from domain.snapshots.policy import Keep
from domain.snapshots.repository import BulkSnapshotRepository, SnapshotEnding, SnapshotRepository
from domain.snapshots.states import SnapshotState
from domain.storage.backends import Backends
from domain.storage.driver import Grant
from domain.volumes.repository import Ending, Held, VolumeRepository
from domain.volumes.states import VolumeState

#: What lanes must know of the whole.
_TERMS: Final = ("snapshot_name", "schedule_id", "keep_last", "keep_days")


class Snapshotting:
    """An `Operation`: a snapshot is taken of each volume, which is as before then."""

    state: Final = VolumeState.SNAPSHOTTING
    done: Final = Code.SNAPSHOTTED

    def __init__(self, backends: Backends, keeping: Keeping) -> None:
        self._backends = backends
        self._keeping = keeping

    def terms(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Lanes must know the name, and what is kept."""
        return {name: params[name] for name in _TERMS}

    def measures(self, _: Mapping[str, Any]) -> bool:
        """Nothing depends on what is in use."""
        return False

    async def measure(self, _: Sequence[Line]) -> dict[UUID, int]:
        """Nothing depends on what is in use."""
        return {}

    async def decide(
        self, session: AsyncSession, lane: Lane, volumes: Sequence[tuple[Line, Held]], _: Mapping[UUID, int]
    ) -> list[Entry]:
        """Take a snapshot of every volume that has none of this name."""
        name = lane.params["snapshot_name"]
        named = await BulkSnapshotRepository(session).named([volume.id for _, volume in volumes], name)
        return [_taken(volume, name) if volume.id in named else _to_take(volume) for _, volume in volumes]

    async def begin(
        self, session: AsyncSession, lane: Lane, volumes: Sequence[tuple[Entry, Held]], fresh: Mapping[UUID, int]
    ) -> list[Task]:
        """Write the snapshots down that are to be; a predecessor's are there already."""
        snapshots = BulkSnapshotRepository(session)
        await snapshots.add([_new_snapshot(volume, lane) for _, volume in volumes if volume.id in fresh])
        held = await snapshots.held([volume.id for _, volume in volumes], lane.job_id)
        return [_task(entry, volume, held[volume.id], begun=volume.id not in fresh) for entry, volume in volumes]

    async def do(self, task: Task, grant: Grant) -> int | None:
        """Keep the volume's bytes on its backend."""
        driver = self._backends.reach(task.backend)
        return await driver.take_snapshot(task.volume_id, _snapshot_id(task), grant)

    async def seal(self, task: Task, entry: Entry, grant: Grant) -> Result:
        """See whether anything is there, now that nobody can take the snapshot any more."""
        driver = self._backends.reach(task.backend)
        size = await driver.seal_snapshot(task.volume_id, _snapshot_id(task), grant)
        return Result(entry._replace(snapshot_id=None) if size is None else entry)

    async def record(
        self, session: AsyncSession, lane: Lane, items: Sequence[Entry], sizes: Mapping[UUID, int | None]
    ) -> None:
        """The snapshots are there, with the sizes that they got, or in error, or nothing; the volumes are as before."""
        await _let_go_of_volumes(session, lane.job_id, items)
        made = [item for item in items if item.status is ItemStatus.SUCCEEDED]
        broken = [item for item in items if item.status is not ItemStatus.SUCCEEDED]
        snapshots = SnapshotRepository(session)
        await snapshots.let_go(_endings(lane.job_id, made, sizes), SnapshotState.READY)
        await snapshots.let_go(_endings(lane.job_id, broken, {}), SnapshotState.ERROR)
        nothing = [item.volume_id for item in broken if item.snapshot_id is None]
        await BulkSnapshotRepository(session).discard(nothing, lane.job_id)
        await self._expire(session, lane, [item.volume_id for item in made])

    async def renew(self, session: AsyncSession, job_id: UUID, items: Sequence[Line]) -> None:
        """It is the snapshots that are published."""
        await BulkSnapshotRepository(session).raise_versions([item.volume_id for item in items], job_id)

    async def forsake(self, session: AsyncSession, job_id: UUID, items: Sequence[Line]) -> None:
        """Nobody knows what is there of the snapshots; the volumes are as before."""
        await _let_go_of_volumes(session, job_id, items)
        await SnapshotRepository(session).let_go(_endings(job_id, items, {}), SnapshotState.ERROR)

    async def _expire(self, session: AsyncSession, lane: Lane, volume_ids: Sequence[UUID]) -> None:
        """Have the schedule delete what it does not keep of volumes that have a new snapshot."""
        keep, schedule_id = Keep(lane.params["keep_last"], lane.params["keep_days"]), _schedule_id(lane)
        if schedule_id is not None and keep.named is not None:
            await self._keeping.expire(session, volume_ids, schedule_id, keep, caller=lane.created_by)


async def _let_go_of_volumes(session: AsyncSession, job_id: UUID, items: Sequence[Entry | Line]) -> None:
    endings = [Ending(item.volume_id, job_id, None) for item in items]
    await VolumeRepository(session).let_go(endings, VolumeState.AVAILABLE)


def _endings(job_id: UUID, items: Sequence[Entry | Line], sizes: Mapping[UUID, int | None]) -> list[SnapshotEnding]:
    return [
        SnapshotEnding(item.snapshot_id, job_id, sizes.get(item.volume_id))
        for item in items
        if item.snapshot_id is not None
    ]


def _to_take(volume: Held) -> Entry:
    return Entry(volume.id, ItemStatus.CLAIMED, from_size=volume.size)


def _taken(volume: Held, name: str) -> Entry:
    detail = f"The volume already has a snapshot named {name!r}."
    return Entry(volume.id, ItemStatus.FAILED, Code.NAME_TAKEN, detail, from_size=volume.size)


def _new_snapshot(volume: Held, lane: Lane) -> Snapshot:
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


def _task(entry: Entry, volume: Held, held: tuple[UUID, int], *, begun: bool) -> Task:
    snapshot_id, version = held
    return Task(entry._replace(snapshot_id=snapshot_id), volume.backend, version, begun)


def _snapshot_id(task: Task) -> UUID:
    if task.entry.snapshot_id is None:
        raise RuntimeError(f"volume {task.volume_id} was taken without a snapshot to be")
    return task.entry.snapshot_id


def _schedule_id(lane: Lane) -> UUID | None:
    given = lane.params["schedule_id"]
    return None if given is None else UUID(given)
