"""A volume whose file somebody else has open is neither replaced nor removed, and short reads are waited for."""

import asyncio
import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from domain.storage.context import Stopped, StopReason
from domain.storage.errors import FenceRefused, StorageBusy, VolumeInUse
from domain.storage.file import folder, leases
from domain.storage.file.driver import FileDriver
from tests.unit.file_builders import (
    MIB,
    NEW,
    OLD,
    SNAPSHOT,
    VOLUME,
    attempt,
    data,
    failing,
    files,
    perform,
    snapshot_driver,
)

driver = pytest.fixture(snapshot_driver)
every_end = pytest.mark.parametrize("operation", ["restore_snapshot", "delete"])

HOLDER = "import sys; held = open(sys.argv[1], sys.argv[2]); print(flush=True); sys.stdin.read()"


@contextmanager
def opened_by_another_process(path: Path, mode: str = "rb") -> Iterator[None]:
    command, pipe = [sys.executable, "-c", HOLDER, str(path), mode], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()


@contextmanager
def leased(path: Path) -> Iterator[int]:
    """Hold the lease that the driver holds while it replaces a file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with leases.held_exclusively(handle, path, attempt()):
            yield handle
    finally:
        os.close(handle)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "IN_USE_SECONDS", 0.05)
    monkeypatch.setattr(folder, "LEASE_SECONDS", 0.05)


@pytest.mark.usefixtures("_impatient")
class TestRefusal:
    @every_end
    @pytest.mark.parametrize("mode", ["rb", "r+b"])
    async def test_file_that_another_process_has_open_is_neither_replaced_nor_removed(
        self, driver: FileDriver, operation: str, mode: str
    ) -> None:
        data(driver).write_bytes(NEW)
        before, inode = files(driver), data(driver).stat().st_ino

        with (
            opened_by_another_process(data(driver), mode),
            pytest.raises(VolumeInUse, match=f"^{data(driver)} is open"),
        ):
            await perform(driver, operation, attempt(3))

        assert (files(driver), data(driver).stat().st_ino) == (before, inode)
        assert data(driver).read_bytes() == NEW
        assert list((driver.root / ".trash").iterdir()) == []

    @every_end
    async def test_the_same_attempt_succeeds_once_the_file_is_closed(self, driver: FileDriver, operation: str) -> None:
        data(driver).write_bytes(NEW)
        with data(driver).open("rb"), pytest.raises(VolumeInUse):
            await perform(driver, operation, attempt(3))

        await perform(driver, operation, attempt(3))

        assert not data(driver).exists() if operation == "delete" else data(driver).read_bytes() == OLD

    async def test_file_that_is_mapped_but_closed_counts_as_open(self, driver: FileDriver) -> None:
        with data(driver).open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        with mapped, pytest.raises(VolumeInUse):
            await perform(driver, "restore_snapshot", attempt(3))

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES])
    @every_end
    async def test_work_goes_on_where_leases_cannot_be_set(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str, number: int
    ) -> None:
        monkeypatch.setattr(fcntl, "fcntl", failing(number))
        data(driver).write_bytes(NEW)

        with data(driver).open("rb"):
            await perform(driver, operation, attempt(3))

        assert not data(driver).exists() if operation == "delete" else data(driver).read_bytes() == OLD

    async def test_open_snapshot_is_restored_and_deleted(self, driver: FileDriver) -> None:
        snapshot = data(driver).parent / "snapshots" / str(SNAPSHOT)
        with opened_by_another_process(snapshot):
            await perform(driver, "restore_snapshot", attempt(3))
            await perform(driver, "delete_snapshot", attempt(4))


class TestWaiting:
    async def test_short_read_is_waited_for(self, driver: FileDriver) -> None:
        data(driver).write_bytes(NEW)
        with data(driver).open("rb"):
            restoring = asyncio.ensure_future(driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(3)))
            while not list(data(driver).parent.glob("*.tmp")):
                await asyncio.sleep(0.001)
            done, _ = await asyncio.wait([restoring], timeout=0.1)
            assert not done
            assert data(driver).read_bytes() == NEW

        assert await restoring == MIB
        assert data(driver).read_bytes() == OLD

    async def test_attempt_that_waits_can_be_stopped(self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(leases, "IN_USE_SECONDS", 60.0)
        grant = attempt(3)
        with data(driver).open("rb"):
            deleting = asyncio.ensure_future(driver.delete(VOLUME, grant))
            await asyncio.wait([deleting], timeout=0.05)
            grant.stop(StopReason.CANCELLED)
            with pytest.raises(Stopped):
                await deleting
        assert data(driver).exists()

    async def test_volume_can_be_measured_at_every_moment_of_a_restore(self, driver: FileDriver) -> None:
        missing = 0
        restored = asyncio.Event()

        async def measure() -> None:
            nonlocal missing
            while not restored.is_set():
                missing += VOLUME not in await driver.measure([VOLUME])

        measuring = asyncio.ensure_future(measure())
        for version in range(3, 40):
            await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(version))
        restored.set()
        await measuring
        assert missing == 0

    async def test_restores_at_once_do_not_take_each_other_for_somebody_else(self, driver: FileDriver) -> None:
        for version in range(3, 20):
            grants = attempt(version, 1), attempt(version, 2)
            restores = [driver.restore_snapshot(VOLUME, SNAPSHOT, grant) for grant in grants]
            first, second = await asyncio.gather(*restores, return_exceptions=True)
            assert first == MIB or isinstance(first, FenceRefused)
            assert second == MIB

    async def test_reader_waits_until_a_lease_is_released(self, driver: FileDriver) -> None:
        with leased(data(driver)):
            measuring = asyncio.ensure_future(driver.measure([VOLUME]))
            done, _ = await asyncio.wait([measuring], timeout=0.05)
            assert not done

        assert VOLUME in await measuring

    @pytest.mark.usefixtures("_impatient")
    async def test_lease_that_another_program_keeps_makes_the_storage_busy(self, driver: FileDriver) -> None:
        with leased(data(driver)), pytest.raises(StorageBusy):
            await driver.expand(VOLUME, 2 * MIB, attempt(3))

    def test_opening_a_leased_file_does_not_end_the_process_that_holds_the_lease(self, driver: FileDriver) -> None:
        with leased(data(driver)) as handle:
            with pytest.raises(BlockingIOError):
                os.open(data(driver), os.O_RDONLY | os.O_NONBLOCK)
            assert fcntl.fcntl(handle, fcntl.F_GETLEASE) == fcntl.F_RDLCK  # what the kernel asks it to become

        assert data(driver).read_bytes() == OLD
