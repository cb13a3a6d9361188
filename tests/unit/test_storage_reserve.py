"""Volumes that take all their room at once, or none of it."""

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.errors import ConfigurationError
from domain.storage.backends import open_driver
from domain.storage.context import Fence, Grant, Stopped, StopReason
from domain.storage.driver import StorageDriver
from domain.storage.errors import StorageFull
from domain.storage.file import reserve as reserving
from tests.unit.storage_scene import HeardGrant

KIB, MIB = 1024, 1024 * 1024
VOLUME = UUID("01890000-0000-7000-8000-000000000001")


@pytest.fixture
async def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StorageDriver]:
    """A thick backend that reserves a mebibyte at a time."""
    monkeypatch.setattr(reserving, "_SLICE", MIB)
    driver = open_driver(f"file:{tmp_path}/volumes?allocate=full", 2)
    yield driver
    await driver.close()


def on_disk(driver: StorageDriver) -> tuple[int, int]:
    """A volume's length and what it really takes; a scattered file has a block or two more, to find its parts by."""
    found = Path(str(driver.path(VOLUME))).stat()
    taken = found.st_blocks * 512
    return found.st_size, taken - taken % (16 * KIB)


def full_after(monkeypatch: pytest.MonkeyPatch, slices: int) -> None:
    reserve, left = reserving.reserve, iter(range(slices))

    def reserve_or_refuse(handle: int, start: int, length: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(handle, start, length)

    monkeypatch.setattr(reserving, "reserve", reserve_or_refuse)


async def test_what_is_made_and_grown_has_all_its_blocks(driver: StorageDriver) -> None:
    await driver.create(VOLUME, 2 * MIB, HeardGrant(1))
    assert on_disk(driver) == (2 * MIB, 2 * MIB)
    await driver.expand(VOLUME, 5 * MIB + 64 * KIB, HeardGrant(2))

    assert on_disk(driver) == (5 * MIB + 64 * KIB, 5 * MIB + 64 * KIB)


async def test_sparse_is_what_it_is_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    for option in ("", "?allocate=sparse"):
        driver = open_driver(f"file:{tmp_path}/volumes{option}", 1)
        await driver.create(VOLUME, 2 * MIB, HeardGrant(1))
        assert on_disk(driver) == (2 * MIB, 0)
        await driver.close()


async def test_where_there_is_no_room_to_grow_nothing_has_changed(
    driver: StorageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await driver.create(VOLUME, 2 * MIB, HeardGrant(1))
    full_after(monkeypatch, 2)
    with pytest.raises(StorageFull):
        await driver.expand(VOLUME, 9 * MIB, HeardGrant(2))

    assert on_disk(driver) == (2 * MIB, 2 * MIB)


async def test_where_there_is_no_room_to_create_nothing_is_left(
    driver: StorageDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full_after(monkeypatch, 2)
    with pytest.raises(StorageFull):
        await driver.create(VOLUME, 9 * MIB, HeardGrant(1))

    assert not Path(str(driver.path(VOLUME))).parent.exists()


async def test_a_reservation_that_is_stopped_is_given_back(
    driver: StorageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await driver.create(VOLUME, MIB, HeardGrant(1))
    grant = Grant(uuid4(), Fence(2, 0), 10.0, clock=lambda: 0.0)
    reserve = reserving.reserve

    def reserve_and_stop(handle: int, start: int, length: int) -> None:
        reserve(handle, start, length)
        grant.stop(StopReason.CANCELLED)

    monkeypatch.setattr(reserving, "reserve", reserve_and_stop)
    with pytest.raises(Stopped):
        await driver.expand(VOLUME, 9 * MIB, grant)

    assert on_disk(driver) == (MIB, MIB)


async def test_what_a_killed_attempt_has_reserved_shows_nowhere_and_is_given_back_by_sealing(
    driver: StorageDriver,
) -> None:
    await driver.create(VOLUME, MIB, HeardGrant(1))
    handle = os.open(str(driver.path(VOLUME)), os.O_RDWR)
    reserving.reserve(handle, MIB, 4 * MIB)
    os.close(handle)
    assert on_disk(driver) == (MIB, 5 * MIB)

    assert await driver.seal(VOLUME, HeardGrant(2)) == MIB
    assert on_disk(driver) == (MIB, MIB)


def test_another_way_to_allocate_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="allocate='thin' is neither sparse nor full"):
        open_driver(f"file:{tmp_path}/volumes?allocate=thin", 1)


def test_a_file_system_that_cannot_reserve_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(reserving, "reserve", refuse)
    with pytest.raises(ConfigurationError, match=r"cannot reserve room \(allocate=full\)"):
        open_driver(f"file:{tmp_path}/volumes?allocate=full", 1)


async def test_a_full_disk_keeps_no_worker_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_after(monkeypatch, 0)
    await open_driver(f"file:{tmp_path}/volumes?allocate=full", 1).close()
