"""What becomes of one volume in a lane's hands, whatever its storage does: always a value, or nothing yet."""

import math
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from domain.bulk import item_work
from domain.bulk.chunks import Chunks
from domain.bulk.kinds import EXPAND, SNAPSHOT
from domain.bulk.ledger import ItemUpdate, Lane
from domain.bulk.operation import BulkOperation, ItemWork, Result
from domain.bulk.snapshot.operation import SnapshotOperation
from domain.bulk.states import ItemCode, ItemStatus
from domain.db.database import Database
from domain.jobs.transport.job_queue import JobQueue
from domain.snapshots.service import SnapshotService
from domain.storage.backends import Backends
from domain.storage.context import Fence, Grant, Stopped, StopReason
from domain.storage.driver import StorageDriver
from domain.storage.errors import FenceRefused, StorageBusy, StorageFull, TransientStorageError

BUG, PASSING = ValueError("a bug"), TransientStorageError()


class Shaky:
    """Storage that does with each call what it is told next; in the end it works, and has ``left`` so many bytes."""

    def __init__(self, *errors: Exception, seals: Sequence[Exception] = (), left: int | None = None) -> None:
        self._errors, self._seals, self._left = [*errors], [*seals], left
        self.calls: list[tuple[str, UUID, UUID, Fence]] = []

    async def take_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        self.calls.append(("take", volume_id, snapshot_id, grant.fence))
        if self._errors:
            raise self._errors.pop(0)
        return 7

    async def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        self.calls.append(("seal", volume_id, snapshot_id, grant.fence))
        if self._seals:
            raise self._seals.pop(0)
        return self._left


def a_lane(**params: Any) -> Lane:
    return Lane(uuid7(), uuid7(), 0, None, {"of": SNAPSHOT, "slots": 1, "last": False, "fence": 0} | params)


def a_task(*, resumed: bool = False) -> ItemWork:
    entry = ItemUpdate(uuid7(), ItemStatus.CLAIMED, from_size=5, snapshot_id=uuid7())
    return ItemWork(entry, "shaky", version=3, resumed=resumed)


def on(storage: Shaky) -> Chunks:
    backends = Backends({"shaky": cast("StorageDriver", storage)}, {"shaky": "memory"})
    operations: dict[str, BulkOperation] = {SNAPSHOT: SnapshotOperation(backends, cast("SnapshotService", None))}
    return Chunks(cast("Database", None), cast("JobQueue", None), operations, busy_seconds=1)


async def done(storage: Shaky, task: ItemWork) -> Result | None:
    return await on(storage).perform(a_lane(), task, Grant(uuid7(), Fence(0, 4), math.inf))


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_work, "_PAUSE_SECONDS", 0.0)


async def test_what_goes_well_succeeds_under_the_snapshots_own_fence() -> None:
    task, storage = a_task(), Shaky()

    assert await done(storage, task) == Result(task.ended(ItemStatus.SUCCEEDED, "snapshotted"), 7)
    assert storage.calls == [("take", task.volume_id, task.update.snapshot_id, Fence(3, 4))]


@pytest.mark.usefixtures("_no_pause")
async def test_a_failure_that_may_pass_gets_a_second_and_a_third_chance() -> None:
    storage = Shaky(TransientStorageError(), TransientStorageError())
    result = await done(storage, a_task())

    assert result is not None
    assert result.update.status == "succeeded"
    assert [call[0] for call in storage.calls] == ["take"] * 3


@pytest.mark.parametrize("reason", [Stopped(StopReason.SHUTDOWN), StorageBusy()], ids=["stopped", "busy"])
async def test_whoever_is_stopped_or_finds_the_lock_held_leaves_it_as_it_is(reason: Exception) -> None:
    storage = Shaky(reason)

    assert await done(storage, a_task()) is None
    assert [call[0] for call in storage.calls] == ["take"]


@pytest.mark.usefixtures("_no_pause")
@pytest.mark.parametrize(
    ("errors", "code"),
    [([StorageFull()], "storage-full"), ([PASSING] * 3, PASSING.code), ([BUG], "internal")],
    ids=["for good", "three times", "a bug"],
)
async def test_what_fails_is_sealed_and_leaves_nothing_if_nothing_is_there(errors: list[Exception], code: str) -> None:
    storage = Shaky(*errors)
    result = await done(storage, a_task())

    assert result is not None
    assert (result.update.status, result.update.code, result.update.snapshot_id) == ("failed", code, None)
    assert storage.calls[-1][0] == "seal"


@pytest.mark.parametrize(
    "storage",
    [Shaky(StorageFull(), left=7), Shaky(StorageFull(), seals=[StorageFull()]), Shaky(FenceRefused())],
    ids=["there", "unknown", "refused"],
)
async def test_what_fails_and_may_have_left_something_keeps_its_snapshot(storage: Shaky) -> None:
    task = a_task()
    result = await done(storage, task)

    assert result is not None
    assert (result.update.status, result.update.snapshot_id) == ("failed", task.update.snapshot_id)


async def test_what_cannot_be_sealed_now_is_tried_again() -> None:
    assert await done(Shaky(StorageFull(), seals=[StorageBusy()]), a_task()) is None


async def test_what_nobody_has_begun_is_let_be_with_nothing_left() -> None:
    task = a_task()

    assert on(Shaky()).skip(task) == Result(
        task.update._replace(status=ItemStatus.SKIPPED, code=ItemCode.CANCELLED, snapshot_id=None)
    )


async def test_the_last_lane_only_looks() -> None:
    storage = Shaky()
    result = await on(storage).fail(a_lane(), a_task(), Grant(uuid7(), Fence(0, 4), math.inf))

    assert result is not None
    assert (result.update.code, result.update.snapshot_id) == ("lanes-lost", None)
    assert [call[0] for call in storage.calls] == ["seal"]


def test_a_lane_from_before_there_were_others_is_one_of_an_expansion() -> None:
    growing = cast("BulkOperation", object())
    chunks = Chunks(cast("Database", None), cast("JobQueue", None), {EXPAND: growing}, busy_seconds=1)
    lane = a_lane()._replace(params={"policy": {}, "slots": 1, "last": False})

    assert chunks._operation(lane) is growing
