"""Snapshot attempts that are stopped, overtaken or fail leave no partial files."""

import errno
import fcntl
import os
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from domain.storage.context import Grant, Stopped, StopReason
from domain.storage.errors import FenceRefused, StorageFull
from domain.storage.file import disk
from domain.storage.file.driver import FileDriver
from tests.unit.file_builders import NEW, OLD, SNAPSHOT, VOLUME, attempt, data, failing, files, snapshot_driver

driver = pytest.fixture(snapshot_driver)


async def perform(driver: FileDriver, operation: str, grant: Grant, new: UUID) -> object:
    """Take, restore or clone; ``new`` is the id of the snapshot or clone created."""
    if operation == "take_snapshot":
        return await driver.take_snapshot(VOLUME, new, grant)
    if operation == "restore_snapshot":
        return await driver.restore_snapshot(VOLUME, SNAPSHOT, grant)
    return await driver.clone_snapshot(VOLUME, SNAPSHOT, new, 0, grant)


every_copy = pytest.mark.parametrize("operation", ["take_snapshot", "restore_snapshot", "clone_snapshot"])


@every_copy
class TestUnfinished:
    @pytest.mark.parametrize("step", ["copy_file_range", "ftruncate", "fsync"])
    async def test_full_disk_leaves_no_partial_files(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str, step: str
    ) -> None:
        before = files(driver)
        monkeypatch.setattr(fcntl, "ioctl", failing(errno.EOPNOTSUPP))
        monkeypatch.setattr(os, step, failing(errno.ENOSPC))

        with pytest.raises(StorageFull):
            await perform(driver, operation, attempt(3), new=uuid4())

        assert files(driver) == before
        assert data(driver).read_bytes() == OLD

    async def test_copy_stopped_in_the_middle_leaves_no_partial_files(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str
    ) -> None:
        before, grant, slices = files(driver), attempt(3), list[int]()
        monkeypatch.setattr(fcntl, "ioctl", failing(errno.EOPNOTSUPP))
        monkeypatch.setattr(disk, "COPY_SLICE_BYTES", 4096)

        def stop_at_the_second(done: int, _: int) -> None:
            slices.append(done)
            if len(slices) == 2:
                grant.stop(StopReason.SHUTDOWN)

        monkeypatch.setattr(grant, "report", stop_at_the_second)
        with pytest.raises(Stopped):
            await perform(driver, operation, grant, new=uuid4())

        assert slices == [4096, 8192]
        assert files(driver) == before

    async def test_attempt_overtaken_during_the_copy_publishes_nothing(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str
    ) -> None:
        new = uuid4()
        before = files(driver)
        data(driver).write_bytes(NEW)
        copy = disk.copy

        def overtaken(source: int, target: int, grant: Grant, *more: Callable[[], object]) -> int:
            for subject in (VOLUME, new):
                (driver.root / ".fences" / str(subject)).write_text(f"{9:020d} {1:020d}\n")
            return copy(source, target, grant, *more)

        monkeypatch.setattr(disk, "copy", overtaken)
        with pytest.raises(FenceRefused):
            await perform(driver, operation, attempt(8), new)

        assert files(driver) == before
        assert data(driver).read_bytes() == NEW

    async def test_attempt_known_to_be_stale_starts_no_work(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str
    ) -> None:
        new = uuid4()
        await driver.seal(VOLUME, attempt(9))
        await driver.seal(new, attempt(9))
        monkeypatch.setattr(disk, "copy", lambda *_: pytest.fail("copied despite a stale fence"))

        with pytest.raises(FenceRefused):
            await perform(driver, operation, attempt(8), new)


class TestDrafts:
    @pytest.fixture
    def drafts(self, driver: FileDriver) -> list[str]:
        """Create the drafts that attempts 2-1, 3-1 and 9-1 on the snapshot and the volume may have left."""
        names = [f"{target}.{v}-1.tmp" for v in (2, 3, 9) for target in (f"snapshots/{SNAPSHOT}", "data")]
        for name in names:
            (data(driver).parent / name).write_bytes(b"partial")
        return [f"{VOLUME}/{name}" for name in names]

    @pytest.mark.parametrize("operation", ["take_snapshot", "seal_snapshot", "delete_snapshot"])
    async def test_snapshot_drafts_are_swept_up_to_the_fence(
        self, driver: FileDriver, drafts: list[str], operation: str
    ) -> None:
        await getattr(driver, operation)(VOLUME, SNAPSHOT, attempt(3))

        gone = {name for name in drafts if name not in files(driver)}
        assert gone == {f"{VOLUME}/snapshots/{SNAPSHOT}.{v}-1.tmp" for v in (2, 3)}

    @pytest.mark.parametrize("operation", ["restore_snapshot", "seal"])
    async def test_volume_drafts_are_swept_up_to_the_fence(
        self, driver: FileDriver, drafts: list[str], operation: str
    ) -> None:
        ids = (VOLUME, SNAPSHOT) if operation == "restore_snapshot" else (VOLUME,)
        await getattr(driver, operation)(*ids, attempt(3))

        gone = {name for name in drafts if name not in files(driver)}
        assert gone == {f"{VOLUME}/data.{v}-1.tmp" for v in (2, 3)}

    async def test_drafts_of_another_snapshot_are_kept(self, driver: FileDriver, drafts: list[str]) -> None:
        await driver.take_snapshot(VOLUME, uuid4(), attempt(99))

        assert set(drafts) < files(driver)

    async def test_deleting_the_volume_removes_everything_in_its_directory(
        self, driver: FileDriver, drafts: list[str]
    ) -> None:
        await driver.delete(VOLUME, attempt(3))

        assert files(driver) == set()
