"""The lock and the fence record of each published subject."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from domain.storage.context import Stopped, StopReason
from domain.storage.errors import FenceRefused, PermanentStorageError, StorageBusy
from domain.storage.file import fence
from domain.storage.file.driver import FileDriver
from tests.unit.file_builders import ARGUMENTS, CLONE, MIB, SNAPSHOT, VOLUME, attempt, data, empty_driver, perform

SUBJECTS = {
    **dict.fromkeys(["take_snapshot", "delete_snapshot", "seal_snapshot"], SNAPSHOT),
    "clone_snapshot": CLONE,
}
every_operation = pytest.mark.parametrize("operation", ARGUMENTS)
driver = pytest.fixture(empty_driver)


async def set_up(driver: FileDriver) -> None:
    """Create a volume, a snapshot of it, and the lock file of the clone."""
    await driver.create(VOLUME, MIB, attempt())
    await driver.take_snapshot(VOLUME, SNAPSHOT, attempt())
    await driver.seal(CLONE, attempt())


def lock_file(driver: FileDriver, operation: str = "") -> Path:
    """Return the lock file that an operation locks: the volume's, the snapshot's or the clone's."""
    return driver.root / ".fences" / str(SUBJECTS.get(operation, VOLUME))


@contextmanager
def held(path: Path) -> Iterator[BinaryIO]:
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


@every_operation
async def test_lock_held_by_another_process_makes_the_subject_busy(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    await set_up(driver)
    monkeypatch.setattr(fence, "LOCK_TIMEOUT", 0.01)
    hold_lock = (
        "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = [sys.executable, "-S", "-c", hold_lock, str(lock_file(driver, operation))]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(StorageBusy):
            await perform(driver, operation, attempt(2))
        process.kill()

    await perform(driver, operation, attempt(2))  # the kernel releases the lock of a killed process


@every_operation
async def test_attempt_waits_for_a_lock_that_is_soon_released(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    await set_up(driver)
    with held(lock_file(driver, operation)) as lock:
        monkeypatch.setattr("time.sleep", lambda _: fcntl.flock(lock, fcntl.LOCK_UN))

        await perform(driver, operation, attempt(2))


async def test_attempt_stopped_while_waiting_for_the_lock_publishes_nothing(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await driver.create(VOLUME, MIB, attempt())
    grant = attempt(2)

    def stop_and_unlock(_: float) -> None:
        grant.stop(StopReason.LEASE_LOST)
        fcntl.flock(lock, fcntl.LOCK_UN)

    monkeypatch.setattr("time.sleep", stop_and_unlock)
    with held(lock_file(driver)) as lock, pytest.raises(Stopped):
        await driver.expand(VOLUME, 2 * MIB, grant)

    assert data(driver).stat().st_size == MIB


async def test_attempt_overtaken_while_waiting_for_the_lock_is_refused(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await driver.create(VOLUME, MIB, attempt())

    def overtake(_: float) -> None:
        os.pwrite(lock.fileno(), b"%020d %020d\n" % (3, 1), 0)
        fcntl.flock(lock, fcntl.LOCK_UN)

    monkeypatch.setattr("time.sleep", overtake)
    with held(lock_file(driver)) as lock, pytest.raises(FenceRefused):
        await driver.expand(VOLUME, 2 * MIB, attempt(2))

    assert data(driver).stat().st_size == MIB


@every_operation
async def test_on_published_is_called_while_the_lock_is_held(driver: FileDriver, operation: str) -> None:
    await set_up(driver)
    tried: list[bool] = []

    def try_lock() -> None:
        with lock_file(driver, operation).open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        tried.append(True)

    await perform(driver, operation, attempt(2, callback=try_lock))

    assert tried == [True]


async def test_damaged_fence_record_prevents_publishing(driver: FileDriver) -> None:
    await driver.create(VOLUME, MIB, attempt())
    lock_file(driver).write_text("scribble")

    with pytest.raises(PermanentStorageError, match=str(VOLUME)):
        await driver.expand(VOLUME, 2 * MIB, attempt(2))
