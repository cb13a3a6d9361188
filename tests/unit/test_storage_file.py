"""What only the file driver does: sparse files, names, drafts, trash, locks."""

import asyncio
import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID, uuid4

import pytest

from domain.errors import StorageError
from domain.storage import fence
from domain.storage.driver import (
    AccessDenied,
    Fence,
    FenceRefused,
    Grant,
    PermanentStorageError,
    SizeUnsupported,
    Stopped,
    StopReason,
    StorageBusy,
    StorageFull,
    TransientStorageError,
    VolumeMissing,
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


def tree(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


def failing(number: int) -> Callable[..., None]:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@contextmanager
def held(path: Path) -> Iterator[BinaryIO]:
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


class TestFiles:
    async def test_a_large_volume_takes_next_to_no_room(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, 64 * 1024 * MIB, attempt())
        await driver.expand(VOLUME, 128 * 1024 * MIB, attempt(2))

        assert data(driver).stat().st_size == 128 * 1024 * MIB
        assert data(driver).stat().st_blocks < 1000

    async def test_usage_counts_what_was_written(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, 64 * MIB, attempt())
        with data(driver).open("r+b") as file:
            file.write(os.urandom(MIB))
            os.fsync(file)

        usage = await driver.measure(VOLUME)

        assert usage is not None
        assert usage.size == 64 * MIB
        assert MIB <= usage.used < 2 * MIB

    async def test_expanding_keeps_the_bytes(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, MIB, attempt())
        data(driver).write_bytes(b"mine".ljust(MIB, b"."))
        await driver.expand(VOLUME, 2 * MIB, attempt(2))

        assert data(driver).read_bytes() == b"mine".ljust(MIB, b".") + bytes(MIB)

    async def test_creating_again_keeps_the_bytes(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, 4, attempt())
        data(driver).write_bytes(b"mine")
        await driver.create(VOLUME, 4, attempt(2))

        assert data(driver).read_bytes() == b"mine"

    async def test_nothing_is_made_before_the_first_use(self, driver: FileDriver) -> None:
        assert not driver.root.exists()

        await driver.create(VOLUME, MIB, attempt())

        assert sorted(entry.name for entry in driver.root.iterdir()) == [".fences", ".trash", str(VOLUME)]

    def test_the_path_is_absolute_even_if_the_root_is_not(self) -> None:
        path = FileDriver(Path("volumes"), threads=1).path(VOLUME)

        assert path == str(Path.cwd() / "volumes" / str(VOLUME) / "data")

    async def test_a_string_cannot_become_a_path(self, driver: FileDriver, tmp_path: Path) -> None:
        await driver.capacity()
        before = tree(tmp_path)

        escapes: list[Any] = ["../escape", "/etc/escape", ".fences"]
        for escape in escapes:
            with pytest.raises(AttributeError):
                await driver.create(escape, MIB, attempt())
            with pytest.raises(AttributeError):
                driver.path(escape)

        assert tree(tmp_path) == before

    async def test_capacity_is_that_of_the_file_system(self, driver: FileDriver) -> None:
        capacity = await driver.capacity()

        found = os.statvfs(driver.root)
        assert capacity.total == found.f_blocks * found.f_frsize

    async def test_work_runs_in_the_drivers_own_threads(self, driver: FileDriver) -> None:
        seen: list[str] = []

        await driver.create(VOLUME, MIB, attempt(tell=lambda: seen.append(threading.current_thread().name)))

        assert seen[0].startswith("storage")

    async def test_closing_waits_for_the_work_that_still_runs(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await driver.create(VOLUME, MIB, attempt())
        started, release = threading.Event(), threading.Event()
        resize = os.ftruncate

        def slow(handle: int, size: int) -> None:
            started.set()
            release.wait(10)
            resize(handle, size)

        monkeypatch.setattr(os, "ftruncate", slow)
        expanding = asyncio.create_task(driver.expand(VOLUME, 2 * MIB, attempt(2)))
        await asyncio.to_thread(started.wait, 10)
        closing = asyncio.create_task(driver.close())
        await asyncio.sleep(0)
        assert not closing.done()
        release.set()
        await closing

        assert data(driver).stat().st_size == 2 * MIB
        assert await expanding == 2 * MIB


class TestDrafts:
    async def test_create_sweeps_the_drafts_of_earlier_attempts_only(self, driver: FileDriver) -> None:
        data(driver).parent.mkdir(parents=True)
        for name in ("data.1-2.tmp", "data.2-1.tmp", "data.2-10.tmp", "notes.1-1.tmp"):
            (data(driver).parent / name).touch()

        await driver.create(VOLUME, MIB, attempt(2, 2))

        left = sorted(entry.name for entry in data(driver).parent.iterdir())
        assert left == ["data", "data.2-10.tmp", "notes.1-1.tmp"]

    @pytest.mark.parametrize("step", ["ftruncate", "fsync", "link"])
    async def test_a_create_that_fails_leaves_nothing_of_its_own(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        await driver.capacity()
        monkeypatch.setattr(os, step, failing(errno.ENOSPC))
        with pytest.raises(StorageFull):
            await driver.create(VOLUME, MIB, attempt())

        assert not data(driver).parent.exists()

    async def test_a_create_that_fails_leaves_the_drafts_of_others(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = data(driver).parent / "data.3-1.tmp"
        other.parent.mkdir(parents=True)
        other.touch()
        monkeypatch.setattr(os, "link", failing(errno.ENOSPC))
        with pytest.raises(StorageFull):
            await driver.create(VOLUME, MIB, attempt())

        assert list(other.parent.iterdir()) == [other]

    async def test_a_draft_that_is_a_second_name_of_the_data_is_not_truncated(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, 4, attempt())
        data(driver).write_bytes(b"mine")
        os.link(data(driver), data(driver).with_name("data.1-1.tmp"))

        await driver.create(VOLUME, 4, attempt())

        assert data(driver).read_bytes() == b"mine"
        assert data(driver).stat().st_nlink == 1

    async def test_an_attempt_that_is_known_to_be_late_begins_no_work(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await driver.seal(VOLUME, attempt(2))
        monkeypatch.setattr(os, "ftruncate", failing(errno.EIO))

        with pytest.raises(FenceRefused):
            await driver.create(VOLUME, MIB, attempt(1))


class TestTrash:
    async def test_a_deleted_volume_is_gone_with_everything_in_it(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, MIB, attempt())
        (data(driver).parent / "snapshots" / "one").mkdir(parents=True)

        await driver.delete(VOLUME, attempt(2))

        assert not data(driver).parent.exists()
        assert list((driver.root / ".trash").iterdir()) == []

    async def test_a_delete_removes_what_earlier_ones_left_of_this_volume_only(self, driver: FileDriver) -> None:
        mine, other = driver.root / ".trash" / f"{VOLUME}.1-1", driver.root / ".trash" / f"{uuid4()}.1-1"
        for leftover in (mine, other):
            (leftover / "snapshots").mkdir(parents=True)

        await driver.delete(VOLUME, attempt(2))

        assert list((driver.root / ".trash").iterdir()) == [other]

    async def test_a_volume_whose_removal_fails_is_deleted_all_the_same(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await driver.create(VOLUME, MIB, attempt())
        with monkeypatch.context() as patch:
            patch.setattr("shutil.rmtree", failing(errno.EIO))
            with pytest.raises(TransientStorageError):
                await driver.delete(VOLUME, attempt(2))

        assert await driver.measure(VOLUME) is None
        await driver.delete(VOLUME, attempt(2, 2))
        assert list((driver.root / ".trash").iterdir()) == []

    async def test_a_delete_that_has_nowhere_to_move_the_volume_does_not_claim_success(
        self, driver: FileDriver
    ) -> None:
        await driver.create(VOLUME, MIB, attempt())
        (driver.root / ".trash").rmdir()

        with pytest.raises(TransientStorageError):
            await driver.delete(VOLUME, attempt(2))

        assert await driver.measure(VOLUME) is not None


class TestLock:
    @every_operation
    async def test_a_lock_held_by_another_process_makes_the_volume_busy(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str
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
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str
    ) -> None:
        await driver.create(VOLUME, MIB, attempt())
        with held(lock_file(driver)) as lock:
            monkeypatch.setattr("time.sleep", lambda _: fcntl.flock(lock, fcntl.LOCK_UN))

            await perform(driver, operation, attempt(2))

    async def test_an_attempt_stopped_while_it_waits_for_the_lock_publishes_nothing(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
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
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
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
    async def test_the_effect_is_told_while_the_lock_is_held(self, driver: FileDriver, operation: str) -> None:
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
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch, operation: str, effect: str
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

    async def test_a_damaged_fence_record_lets_nobody_publish(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, MIB, attempt())
        lock_file(driver).write_text("scribble")

        with pytest.raises(PermanentStorageError, match=str(VOLUME)):
            await driver.expand(VOLUME, 2 * MIB, attempt(2))


def noting(steps: list[str], name: str) -> Callable[..., object]:
    real = getattr(os, name)

    def noted(*args: object) -> object:
        steps.append(name)
        return real(*args)

    return noted


class TestErrors:
    @pytest.mark.parametrize(
        ("number", "kind"),
        [
            (errno.ENOSPC, StorageFull),
            (errno.EDQUOT, StorageFull),
            (errno.EFBIG, SizeUnsupported),
            (errno.EINVAL, SizeUnsupported),
            (errno.EACCES, AccessDenied),
            (errno.EPERM, AccessDenied),
            (errno.EROFS, AccessDenied),
            (errno.EIO, TransientStorageError),
            (errno.ESTALE, TransientStorageError),
        ],
    )
    @pytest.mark.parametrize("operation", ["create", "expand"])
    async def test_each_refusal_of_the_system_has_its_error(
        self,
        driver: FileDriver,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        kind: type[StorageError],
        operation: str,
    ) -> None:
        await driver.create(VOLUME, 1, attempt())
        monkeypatch.setattr(os, "ftruncate", failing(number))

        with pytest.raises(kind, match=os.strerror(number)) as caught:
            await perform(driver, operation, attempt(2))

        assert type(caught.value) is kind

    async def test_a_refusal_that_is_not_about_the_size_may_pass(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await driver.create(VOLUME, 1, attempt())
        monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))

        with pytest.raises(TransientStorageError):
            await driver.expand(VOLUME, MIB, attempt(2))

    async def test_a_size_beyond_what_the_system_can_say_is_unsupported(self, driver: FileDriver) -> None:
        with pytest.raises(SizeUnsupported):
            await driver.create(VOLUME, 2**70, attempt())

    async def test_a_volume_whose_data_was_removed_is_missing(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, MIB, attempt())
        data(driver).unlink()

        with pytest.raises(VolumeMissing):
            await driver.expand(VOLUME, 2 * MIB, attempt(2))

    async def test_a_root_that_vanishes_is_not_begun_anew(self, driver: FileDriver) -> None:
        await driver.capacity()
        driver.root.rename(driver.root.with_name("unmounted"))

        with pytest.raises(TransientStorageError):
            await driver.create(VOLUME, MIB, attempt())

        assert not driver.root.exists()
