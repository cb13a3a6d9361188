"""The work on one item of a lane: whatever the driver does, it returns a result, or None if the item stays claimed."""

import math
from collections.abc import Sequence
from typing import cast
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from domain.bulk import operation as operation_module
from domain.bulk.model import ItemCode, ItemStatus, ItemUpdate
from domain.bulk.operation import ItemWork, Result
from domain.bulk.snapshot import SnapshotOperation
from domain.db.database import Database
from domain.jobs.transport.job_queue import JobQueue
from domain.snapshots.service import SnapshotService
from domain.storage.backends import Backends
from domain.storage.context import Fence, Grant, Stopped, StopReason
from domain.storage.driver import StorageDriver, Taken
from domain.storage.errors import FenceRefused, StorageBusy, StorageFull, TransientStorageError
from domain.volumes.attachments.freezing import Freezer

NO_NODE = Freezer(cast("Database", None), cast("JobQueue", None), lease=1)
BUG, TRANSIENT = ValueError("a bug"), TransientStorageError()


class ScriptedDriver:
    """A driver that raises the given errors one by one, and then succeeds; seals find ``left`` bytes."""

    def __init__(self, *errors: Exception, seals: Sequence[Exception] = (), left: int | None = None) -> None:
        self._errors, self._seal_errors, self._left = [*errors], [*seals], left
        self.calls: list[tuple[str, UUID, UUID, Fence]] = []

    async def take_snapshot(
        self, volume_id: UUID, snapshot_id: UUID, grant: Grant, *, allow_torn: bool = True
    ) -> Taken:
        assert not allow_torn
        self.calls.append(("take", volume_id, snapshot_id, grant.fence))
        if self._errors:
            raise self._errors.pop(0)
        return Taken(7, shared=True, was_open=False)

    async def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        self.calls.append(("seal", volume_id, snapshot_id, grant.fence))
        if self._seal_errors:
            raise self._seal_errors.pop(0)
        return self._left


def some_work(*, resumed: bool = False) -> ItemWork:
    update = ItemUpdate(uuid7(), ItemStatus.CLAIMED, from_size=5, snapshot_id=uuid7())
    return ItemWork(update, "scripted", version=3, resumed=resumed)


def operation_on(driver: ScriptedDriver) -> SnapshotOperation:
    backends = Backends({"scripted": cast("StorageDriver", driver)}, {"scripted": "memory"})
    return SnapshotOperation(backends, cast("SnapshotService", None), NO_NODE)


async def perform(driver: ScriptedDriver, work: ItemWork) -> Result | None:
    return await operation_on(driver).work_on(work, Grant(uuid7(), Fence(0, 4), math.inf))


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_module, "_PAUSE_SECONDS", 0.0)


async def test_work_succeeds_under_the_fence_of_its_own_snapshot() -> None:
    work, driver = some_work(), ScriptedDriver()

    assert await perform(driver, work) == Result(
        work.ending(ItemStatus.SUCCEEDED, "snapshotted"), 7, consistency="application"
    )
    assert driver.calls == [("take", work.volume_id, work.update.snapshot_id, Fence(3, 4))]


@pytest.mark.usefixtures("_no_pause")
async def test_transient_failure_is_retried_twice() -> None:
    driver = ScriptedDriver(TransientStorageError(), TransientStorageError())
    result = await perform(driver, some_work())

    assert result is not None
    assert result.update.status == "succeeded"
    assert [call[0] for call in driver.calls] == ["take"] * 3


@pytest.mark.parametrize("reason", [Stopped(StopReason.SHUTDOWN), StorageBusy()], ids=["stopped", "busy"])
async def test_stopped_or_locked_out_work_has_no_result(reason: Exception) -> None:
    driver = ScriptedDriver(reason)

    assert await perform(driver, some_work()) is None
    assert [call[0] for call in driver.calls] == ["take"]


@pytest.mark.usefixtures("_no_pause")
@pytest.mark.parametrize(
    ("errors", "code"),
    [([StorageFull()], "storage-full"), ([TRANSIENT] * 3, TRANSIENT.code), ([BUG], "internal")],
    ids=["for good", "three times", "a bug"],
)
async def test_failed_work_is_sealed_and_drops_its_snapshot_if_nothing_was_left(
    errors: list[Exception], code: str
) -> None:
    driver = ScriptedDriver(*errors)
    result = await perform(driver, some_work())

    assert result is not None
    assert (result.update.status, result.update.code, result.update.snapshot_id) == ("failed", code, None)
    assert driver.calls[-1][0] == "seal"


@pytest.mark.parametrize(
    "driver",
    [
        ScriptedDriver(StorageFull(), left=7),
        ScriptedDriver(StorageFull(), seals=[StorageFull()]),
        ScriptedDriver(FenceRefused()),
    ],
    ids=["there", "unknown", "refused"],
)
async def test_failed_work_keeps_its_snapshot_if_something_may_be_left(driver: ScriptedDriver) -> None:
    work = some_work()
    result = await perform(driver, work)

    assert result is not None
    assert (result.update.status, result.update.snapshot_id) == ("failed", work.update.snapshot_id)


async def test_failed_work_that_cannot_be_sealed_yet_has_no_result() -> None:
    assert await perform(ScriptedDriver(StorageFull(), seals=[StorageBusy()]), some_work()) is None


async def test_skipped_work_leaves_no_snapshot() -> None:
    work = some_work()

    assert operation_on(ScriptedDriver()).skip(work) == Result(
        work.update._replace(status=ItemStatus.SKIPPED, code=ItemCode.CANCELLED, snapshot_id=None)
    )


async def test_last_lane_only_seals() -> None:
    driver = ScriptedDriver()
    result = await operation_on(driver).fail(some_work(), Grant(uuid7(), Fence(0, 4), math.inf))

    assert result is not None
    assert (result.update.code, result.update.snapshot_id) == ("lanes-lost", None)
    assert [call[0] for call in driver.calls] == ["seal"]
