"""Behaviour specific to the file driver: sparse files, paths, drafts."""

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from domain.storage.driver import Usage
from domain.storage.errors import BackendUnavailable, FenceRefused, StorageFull
from domain.storage.file import disk
from domain.storage.file.driver import FileDriver
from tests.unit.file_builders import MIB, VOLUME, CallbackGrant, attempt, data, empty_driver, failing

driver = pytest.fixture(empty_driver)


def tree(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


class TestFiles:
    async def test_large_volume_allocates_almost_nothing(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, 64 * 1024 * MIB, attempt())
        await driver.expand(VOLUME, 128 * 1024 * MIB, attempt(2))

        assert data(driver).stat().st_size == 128 * 1024 * MIB
        assert data(driver).stat().st_blocks < 1000

    async def test_usage_counts_the_bytes_written(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, 64 * MIB, attempt())
        with data(driver).open("r+b") as file:
            file.write(os.urandom(MIB))
            os.fsync(file)

        usage = (await driver.measure([VOLUME])).get(VOLUME)

        assert usage is not None
        assert usage.size == 64 * MIB
        assert usage.used == MIB

    @pytest.mark.parametrize(("max_extents", "used"), [(2, 128 * 1024), (1, MIB)])
    async def test_usage_of_a_fragmented_file_is_what_is_allocated(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch, max_extents: int, used: int
    ) -> None:
        monkeypatch.setattr(disk, "MAX_EXTENTS", max_extents)
        await driver.create(VOLUME, MIB, attempt())
        with data(driver).open("r+b") as file:
            disk.reserve(file.fileno(), 0, MIB)
            for start in (0, MIB // 2):
                os.pwrite(file.fileno(), b"x" * 64 * 1024, start)

        assert await driver.measure([VOLUME]) == {VOLUME: Usage(MIB, used)}

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

    async def test_only_initializing_creates_the_root(self, tmp_path: Path) -> None:
        driver = FileDriver(tmp_path / "deep" / "down", threads=1)
        assert await driver.identity() is None
        with pytest.raises(BackendUnavailable):
            await driver.create(VOLUME, MIB, attempt())
        assert not driver.root.parent.exists()

        assert await driver.initialize("mine") == await driver.initialize("yours") == "mine"
        with pytest.raises(BackendUnavailable):
            await driver.create(VOLUME, MIB, attempt())
        await driver.accept("mine")
        await driver.create(VOLUME, MIB, attempt())
        await driver.close()

        assert sorted(entry.name for entry in driver.root.iterdir()) == [".cistern", ".fences", ".trash", str(VOLUME)]

    def test_path_is_absolute_even_if_the_root_is_relative(self) -> None:
        path = FileDriver(Path("volumes"), threads=1).path(VOLUME)

        assert path == str(Path.cwd() / "volumes" / str(VOLUME) / "data")

    async def test_string_passed_as_an_id_cannot_become_a_path(self, driver: FileDriver, tmp_path: Path) -> None:
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
        threads: list[str] = []

        await driver.create(VOLUME, MIB, attempt(callback=lambda: threads.append(threading.current_thread().name)))

        assert threads[0].startswith("storage")

    async def test_close_waits_for_running_work(self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
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
    async def test_create_sweeps_only_the_drafts_of_earlier_attempts(self, driver: FileDriver) -> None:
        data(driver).parent.mkdir(parents=True)
        for name in ("data.1-2.tmp", "data.2-1.tmp", "data.2-10.tmp", "notes.1-1.tmp"):
            (data(driver).parent / name).touch()

        await driver.create(VOLUME, MIB, attempt(2, 2))

        left = sorted(entry.name for entry in data(driver).parent.iterdir())
        assert left == ["data", "data.2-10.tmp", "notes.1-1.tmp"]

    @pytest.mark.parametrize("step", ["ftruncate", "fsync", "link"])
    async def test_failed_create_leaves_no_files_of_its_own(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        await driver.capacity()
        monkeypatch.setattr(os, step, failing(errno.ENOSPC))
        with pytest.raises(StorageFull):
            await driver.create(VOLUME, MIB, attempt())

        assert not data(driver).parent.exists()

    async def test_failed_create_keeps_the_drafts_of_other_attempts(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = data(driver).parent / "data.3-1.tmp"
        other.parent.mkdir(parents=True)
        other.touch()
        monkeypatch.setattr(os, "link", failing(errno.ENOSPC))
        with pytest.raises(StorageFull):
            await driver.create(VOLUME, MIB, attempt())

        assert list(other.parent.iterdir()) == [other]

    async def test_draft_that_is_a_hard_link_to_the_data_is_not_truncated(self, driver: FileDriver) -> None:
        await driver.create(VOLUME, 4, attempt())
        data(driver).write_bytes(b"mine")
        os.link(data(driver), data(driver).with_name("data.1-1.tmp"))

        await driver.create(VOLUME, 4, attempt())

        assert data(driver).read_bytes() == b"mine"
        assert data(driver).stat().st_nlink == 1

    async def test_attempt_known_to_be_stale_starts_no_work(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await driver.seal(VOLUME, attempt(2))
        monkeypatch.setattr(os, "ftruncate", failing(errno.EIO))

        with pytest.raises(FenceRefused):
            await driver.create(VOLUME, MIB, attempt(1))


class SwappingGrant(CallbackGrant):
    """Swaps the root for another one right before the work is published."""

    def __init__(self, root: Path) -> None:
        super().__init__(2, 1, lambda: None)
        self._root = root
        self._checks = 0

    def check(self) -> None:
        self._checks += 1
        if self._checks == 2:
            self._root.rename(self._root.with_name("away"))
            self._root.mkdir()
            (self._root / ".fences").mkdir()
            (self._root / ".cistern").write_text("another")


async def test_root_is_looked_at_again_right_before_publishing(driver: FileDriver) -> None:
    await driver.create(VOLUME, MIB, attempt())
    with pytest.raises(BackendUnavailable):
        await driver.expand(VOLUME, 2 * MIB, SwappingGrant(driver.root))

    assert (driver.root.with_name("away") / str(VOLUME) / "data").stat().st_size == MIB
    assert not (driver.root / str(VOLUME)).exists()
