"""The contract of every driver for volumes. A new driver joins by adding its URL to `STORING_DRIVERS`."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from domain.storage.driver import Capacity, StorageDriver
from domain.storage.errors import FenceRefused, VolumeMissing
from domain.storage.file import fence
from tests.unit.storage_builders import MIB, RecordingGrant, every_driver, open_in, size_of


@every_driver
async def test_create_makes_a_volume_of_exactly_the_requested_size(driver: StorageDriver) -> None:
    assert await driver.create(uuid4(), 12_345_678, RecordingGrant()) == 12_345_678


async def test_created_volume_has_its_size_and_allocates_almost_nothing(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, 100 * MIB, RecordingGrant())

    usage = (await driver.measure([volume])).get(volume)

    assert usage is not None
    assert usage.size == 100 * MIB
    assert usage.used is None or usage.used < MIB


async def test_create_never_replaces_a_volume(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, 2 * MIB, RecordingGrant())

    assert await driver.create(volume, MIB, RecordingGrant(2)) == 2 * MIB
    assert await driver.create(volume, 3 * MIB, RecordingGrant(3)) == 2 * MIB
    assert await size_of(driver, volume) == 2 * MIB


@every_driver
async def test_expand_grows_to_exactly_the_requested_size(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, MIB, RecordingGrant())

    assert await driver.expand(volume, 5 * MIB + 1, RecordingGrant(2)) == 5 * MIB + 1


async def test_expand_never_shrinks(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, 5 * MIB, RecordingGrant())

    assert await driver.expand(volume, MIB, RecordingGrant(2)) == 5 * MIB
    assert await size_of(driver, volume) == 5 * MIB


async def test_expanding_an_absent_volume_fails_and_publishes_nothing(driver: StorageDriver) -> None:
    grant = RecordingGrant()

    with pytest.raises(VolumeMissing):
        await driver.expand(uuid4(), MIB, grant)

    assert grant.published == []


async def test_fifty_concurrent_expansions_end_at_the_largest_size(
    driver: StorageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "LOCK_TIMEOUT", 30.0)
    volume = uuid4()
    await driver.create(volume, MIB, RecordingGrant())
    sizes = [MIB + 4096 * ((step * 17) % 50) for step in range(50)]

    returned = await asyncio.gather(*(driver.expand(volume, size, RecordingGrant(2)) for size in sizes))

    assert await size_of(driver, volume) == max(sizes)
    assert all(new >= requested for new, requested in zip(returned, sizes, strict=True))


async def test_delete_removes_the_volume(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, MIB, RecordingGrant())
    await driver.delete(volume, RecordingGrant(2))

    assert await driver.measure([volume]) == {}


async def test_deleting_an_absent_subject_succeeds_and_raises_the_fence(driver: StorageDriver) -> None:
    volume, grant = uuid4(), RecordingGrant(2)
    await driver.delete(volume, grant)

    assert grant.published == [("delete", volume)]
    with pytest.raises(FenceRefused):
        await driver.create(volume, MIB, RecordingGrant(1))


async def test_volume_can_be_created_again_by_the_attempt_that_deleted_it(driver: StorageDriver) -> None:
    volume, grant = uuid4(), RecordingGrant()
    for _ in range(2):
        assert await driver.create(volume, MIB, grant) == MIB
        await driver.delete(volume, grant)

    assert await driver.measure([volume]) == {}


async def test_seal_returns_the_stored_size(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, 7 * MIB, RecordingGrant(1))

    assert await driver.seal(volume, RecordingGrant(2)) == 7 * MIB


async def test_sealing_an_absent_subject_returns_no_size_and_raises_the_fence(driver: StorageDriver) -> None:
    volume = uuid4()

    assert await driver.seal(volume, RecordingGrant(2)) is None
    with pytest.raises(FenceRefused):
        await driver.create(volume, MIB, RecordingGrant(1))


@every_driver
async def test_measure_omits_an_absent_volume(driver: StorageDriver) -> None:
    assert await driver.measure([uuid4()]) == {}


@every_driver
async def test_capacity_is_never_less_than_the_bytes_used(driver: StorageDriver) -> None:
    capacity = await driver.capacity()

    assert capacity.total is None or 0 <= capacity.used <= capacity.total


async def test_null_driver_stores_nothing(tmp_path: Path) -> None:
    driver, volume = open_in(tmp_path, "null:"), uuid4()
    await driver.create(volume, MIB, RecordingGrant())

    assert await driver.measure([volume]) == {}
    assert await driver.seal(volume, RecordingGrant()) is None
    assert driver.path(volume) is None
    assert await driver.capacity() == Capacity(total=None, used=0, free=None)
