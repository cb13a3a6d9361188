"""Volumes with ``allocate=full`` allocate all their blocks at once, or none."""

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.errors import ConfigurationError
from domain.storage.backends import open_driver
from domain.storage.context import Fence, Grant, Stopped, StopReason
from domain.storage.driver import StorageDriver, Usage
from domain.storage.errors import BackendUnavailable, StorageFull
from domain.storage.file import disk
from tests.unit.storage_builders import RecordingGrant, opened

KIB, MIB = 1024, 1024 * 1024
VOLUME = UUID("01890000-0000-7000-8000-000000000001")


@pytest.fixture
async def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StorageDriver]:
    """A backend with ``allocate=full`` that reserves 1 MiB at a time."""
    monkeypatch.setattr(disk, "RESERVE_SLICE_BYTES", MIB)
    driver = opened(f"file:{tmp_path}/volumes?allocate=full", 2)
    yield driver
    await driver.close()


def on_disk(driver: StorageDriver) -> tuple[int, int]:
    """Return a volume's length and its allocated bytes, rounded down: a fragmented file has extra metadata blocks."""
    status = Path(str(driver.path(VOLUME))).stat()
    allocated = status.st_blocks * 512
    return status.st_size, allocated - allocated % (16 * KIB)


def write_at_the_start(driver: StorageDriver, length: int) -> None:
    with Path(str(driver.path(VOLUME))).open("r+b") as file:
        file.write(b"x" * length)


def reserve_more(driver: StorageDriver, start: int, length: int) -> None:
    with Path(str(driver.path(VOLUME))).open("r+b") as file:
        disk.reserve(file.fileno(), start, length)


def full_after(monkeypatch: pytest.MonkeyPatch, slices: int) -> None:
    reserve, remaining = disk.reserve, iter(range(slices))

    def reserve_or_refuse(handle: int, start: int, length: int) -> None:
        if next(remaining, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(handle, start, length)

    monkeypatch.setattr(disk, "reserve", reserve_or_refuse)


async def test_created_and_grown_volumes_have_all_blocks_allocated(driver: StorageDriver) -> None:
    await driver.create(VOLUME, 2 * MIB, RecordingGrant(1))
    assert on_disk(driver) == (2 * MIB, 2 * MIB)
    await driver.expand(VOLUME, 5 * MIB + 64 * KIB, RecordingGrant(2))

    assert on_disk(driver) == (5 * MIB + 64 * KIB, 5 * MIB + 64 * KIB)


async def test_volumes_are_sparse_by_default(tmp_path: Path) -> None:
    for option in ("", "?allocate=sparse"):
        driver = opened(f"file:{tmp_path}/volumes{option}", 1)
        await driver.create(VOLUME, 2 * MIB, RecordingGrant(1))
        assert on_disk(driver) == (2 * MIB, 0)
        await driver.close()


async def test_expand_on_a_full_disk_changes_nothing(driver: StorageDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    await driver.create(VOLUME, 2 * MIB, RecordingGrant(1))
    full_after(monkeypatch, 2)
    with pytest.raises(StorageFull):
        await driver.expand(VOLUME, 9 * MIB, RecordingGrant(2))

    assert on_disk(driver) == (2 * MIB, 2 * MIB)


async def test_create_on_a_full_disk_leaves_no_files(
    driver: StorageDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full_after(monkeypatch, 2)
    with pytest.raises(StorageFull):
        await driver.create(VOLUME, 9 * MIB, RecordingGrant(1))

    assert not Path(str(driver.path(VOLUME))).parent.exists()


async def test_stopped_reservation_is_released(driver: StorageDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    await driver.create(VOLUME, MIB, RecordingGrant(1))
    grant = Grant(uuid4(), Fence(2, 0), 10.0, clock=lambda: 0.0)
    reserve = disk.reserve

    def reserve_and_stop(handle: int, start: int, length: int) -> None:
        reserve(handle, start, length)
        grant.stop(StopReason.CANCELLED)

    monkeypatch.setattr(disk, "reserve", reserve_and_stop)
    with pytest.raises(Stopped):
        await driver.expand(VOLUME, 9 * MIB, grant)

    assert on_disk(driver) == (MIB, MIB)


async def test_seal_releases_blocks_that_a_killed_attempt_reserved(
    driver: StorageDriver,
) -> None:
    await driver.create(VOLUME, MIB, RecordingGrant(1))
    reserve_more(driver, MIB, 4 * MIB)
    assert on_disk(driver) == (MIB, 5 * MIB)

    assert await driver.seal(VOLUME, RecordingGrant(2)) == MIB
    assert on_disk(driver) == (MIB, MIB)


async def test_usage_is_unknown_since_all_blocks_are_allocated(driver: StorageDriver) -> None:
    await driver.create(VOLUME, 2 * MIB, RecordingGrant(1))
    assert await driver.measure([VOLUME]) == {VOLUME: Usage(2 * MIB, None)}
    await driver.expand(VOLUME, 3 * MIB, RecordingGrant(2))

    assert await driver.measure([VOLUME]) == {VOLUME: Usage(3 * MIB, None)}


async def test_blocks_reserved_by_an_earlier_configuration_are_not_in_use(
    driver: StorageDriver, tmp_path: Path
) -> None:
    await driver.create(VOLUME, 2 * MIB, RecordingGrant(1))
    sparse = opened(f"file:{tmp_path}/volumes", 1)
    assert await sparse.measure([VOLUME]) == {VOLUME: Usage(2 * MIB, 0)}
    await sparse.expand(VOLUME, 3 * MIB, RecordingGrant(2))
    write_at_the_start(driver, MIB)

    assert await sparse.measure([VOLUME]) == {VOLUME: Usage(3 * MIB, MIB)}
    await sparse.close()


async def test_blocks_reserved_beyond_the_end_are_not_in_use(tmp_path: Path) -> None:
    driver = opened(f"file:{tmp_path}/volumes", 1)
    await driver.create(VOLUME, MIB, RecordingGrant(1))
    write_at_the_start(driver, MIB)
    reserve_more(driver, MIB, 4 * MIB)
    assert on_disk(driver) == (MIB, 5 * MIB)

    assert await driver.measure([VOLUME]) == {VOLUME: Usage(MIB, MIB)}
    await driver.close()


def test_unknown_allocation_mode_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="allocate='thin' is neither sparse nor full"):
        open_driver(f"file:{tmp_path}/volumes?allocate=thin", 1)


def test_file_system_that_cannot_reserve_blocks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(disk, "reserve", refuse)
    with pytest.raises(BackendUnavailable, match=r"cannot reserve blocks \(allocate=full\)"):
        opened(f"file:{tmp_path}/volumes?allocate=full", 1)


async def test_full_disk_does_not_prevent_opening_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_after(monkeypatch, 0)
    await opened(f"file:{tmp_path}/volumes?allocate=full", 1).close()
