"""The lock and the fence record of one volume, and what is on the disk at which moment."""

import fcntl
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import UUID, uuid4

import pytest

from domain.storage import fence
from domain.storage.driver import (
    Fence,
    FenceRefused,
    Grant,
    PermanentStorageError,
    Stopped,
    StopReason,
    StorageBusy,
)
from domain.storage.file import FileDriver

MIB = 1024 * 1024
VOLUME = UUID("01890000-0000-7000-8000-000000000001")
every_operation = pytest.mark.parametrize("operation", ["create", "expand", "delete", "seal"])


class ToldGrant(Grant):
    """A grant that does something at the moment of publishing."""

    def __init__(self, version: int, rings: int, tell: Callable[[], object]) -> None:
        super().__init__(uuid4(), Fence(version, rings), deadline=1.0, clock=lambda: 0.0)
        self._tell = tell

    def published(self, operation: str, volume_id: UUID) -> None:
        self._tell()


def attempt(version: int = 1, rings: int = 1, tell: Callable[[], object] = lambda: None) -> Grant:
    return ToldGrant(version, rings, tell)


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[FileDriver]:
    driver = FileDriver(tmp_path / "volumes", threads=8)
    yield driver
    await driver.close()


async def perform(driver: FileDriver, operation: str, grant: Grant) -> None:
    sized = (MIB,) if operation in ("create", "expand") else ()
    await getattr(driver, operation)(VOLUME, *sized, grant)


def data(driver: FileDriver) -> Path:
    return Path(driver.path(VOLUME))


def lock_file(driver: FileDriver) -> Path:
    return driver.root / ".fences" / str(VOLUME)


@contextmanager
def held(path: Path) -> Iterator[BinaryIO]:
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def noting(steps: list[str], name: str) -> Callable[..., object]:
    real = getattr(os, name)

    def noted(*args: object) -> object:
        steps.append(name)
        return real(*args)

    return noted


@every_operation
async def test_a_lock_held_by_another_process_makes_the_volume_busy(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    await driver.create(VOLUME, MIB, attempt())
    monkeypatch.setattr(fence, "PATIENCE", 0.01)
    hold = (
        "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = [sys.executable, "-S", "-c", hold, str(lock_file(driver))]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(StorageBusy):
            await perform(driver, operation, attempt(2))
        process.kill()

    await perform(driver, operation, attempt(2))  # a killed process holds nothing


@every_operation
async def test_an_attempt_waits_for_a_lock_that_is_soon_given_back(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    await driver.create(VOLUME, MIB, attempt())
    with held(lock_file(driver)) as lock:
        monkeypatch.setattr("time.sleep", lambda _: fcntl.flock(lock, fcntl.LOCK_UN))

        await perform(driver, operation, attempt(2))


async def test_an_attempt_stopped_while_it_waits_for_the_lock_publishes_nothing(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await driver.create(VOLUME, MIB, attempt())
    grant = attempt(2)

    def stop_and_let_go(_: float) -> None:
        grant.stop(StopReason.LEASE_LOST)
        fcntl.flock(lock, fcntl.LOCK_UN)

    monkeypatch.setattr("time.sleep", stop_and_let_go)
    with held(lock_file(driver)) as lock, pytest.raises(Stopped):
        await driver.expand(VOLUME, 2 * MIB, grant)

    assert data(driver).stat().st_size == MIB


async def test_an_attempt_overtaken_while_it_waits_for_the_lock_is_refused(
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
async def test_the_effect_is_told_while_the_lock_is_held(driver: FileDriver, operation: str) -> None:
    await driver.create(VOLUME, MIB, attempt())
    tried: list[bool] = []

    def try_lock() -> None:
        with lock_file(driver).open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        tried.append(True)

    await perform(driver, operation, attempt(2, tell=try_lock))

    assert tried == [True]


@pytest.mark.parametrize(("operation", "effect"), [("create", "link"), ("expand", "ftruncate")])
async def test_the_fence_is_synced_before_the_effect_and_the_effect_before_it_is_told(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str, effect: str
) -> None:
    if operation == "expand":
        await driver.create(VOLUME, 1, attempt())
    steps: list[str] = []
    for name in ("pwrite", "fsync", effect):
        monkeypatch.setattr(os, name, noting(steps, name))

    await perform(driver, operation, attempt(2, tell=lambda: steps.append("told")))

    steps = steps[steps.index("pwrite") :]
    assert steps[:2] == ["pwrite", "fsync"]
    assert steps.index(effect) > 1
    assert "fsync" in steps[steps.index(effect) : steps.index("told")]


async def test_a_damaged_fence_record_lets_nobody_publish(driver: FileDriver) -> None:
    await driver.create(VOLUME, MIB, attempt())
    lock_file(driver).write_text("scribble")

    with pytest.raises(PermanentStorageError, match=str(VOLUME)):
        await driver.expand(VOLUME, 2 * MIB, attempt(2))


@pytest.mark.parametrize(
    ("operation", "folders"), [("create", {str(VOLUME), "volumes", ".fences"}), ("delete", {".trash", "volumes"})]
)
async def test_changed_names_are_synced_before_the_effect_is_told(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str, folders: set[str]
) -> None:
    if operation == "create":
        await driver.capacity()
    else:
        await driver.create(VOLUME, MIB, attempt())
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink().name))
    told: list[set[str]] = []

    await perform(driver, operation, attempt(2, tell=lambda: told.append(set(synced))))

    assert folders <= told[0]
