"""What every driver promises about volumes. A new driver joins by adding its URL to `KEEPING`."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from domain.storage.driver import Capacity, StorageDriver
from domain.storage.errors import FenceRefused, VolumeMissing
from domain.storage.file import fence
from tests.unit.storage_scene import MIB, HeardGrant, every_driver, opened, size_of


@every_driver
async def test_create_gives_exactly_the_size_asked_for(driver: StorageDriver) -> None:
    assert await driver.create(uuid4(), 12_345_678, HeardGrant()) == 12_345_678


async def test_a_created_volume_has_its_size_and_takes_next_to_no_room(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, 100 * MIB, HeardGrant())

    usage = (await driver.measure([volume])).get(volume)

    assert usage is not None
    assert usage.size == 100 * MIB
    assert usage.used < MIB


async def test_create_never_replaces_a_volume(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, 2 * MIB, HeardGrant())

    assert await driver.create(volume, MIB, HeardGrant(2)) == 2 * MIB
    assert await driver.create(volume, 3 * MIB, HeardGrant(3)) == 2 * MIB
    assert await size_of(driver, volume) == 2 * MIB


@every_driver
async def test_expand_grows_to_the_size_asked_for(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, MIB, HeardGrant())

    assert await driver.expand(volume, 5 * MIB + 1, HeardGrant(2)) == 5 * MIB + 1


async def test_expand_never_shrinks(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, 5 * MIB, HeardGrant())

    assert await driver.expand(volume, MIB, HeardGrant(2)) == 5 * MIB
    assert await size_of(driver, volume) == 5 * MIB


async def test_expanding_what_is_not_there_is_refused_and_publishes_nothing(driver: StorageDriver) -> None:
    grant = HeardGrant()

    with pytest.raises(VolumeMissing):
        await driver.expand(uuid4(), MIB, grant)

    assert grant.heard == []


async def test_fifty_expansions_at_once_end_at_the_largest_size(
    driver: StorageDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence, "LOCK_TIMEOUT", 30.0)
    volume = uuid4()
    await driver.create(volume, MIB, HeardGrant())
    sizes = [MIB + 4096 * ((step * 17) % 50) for step in range(50)]

    got = await asyncio.gather(*(driver.expand(volume, size, HeardGrant(2)) for size in sizes))

    assert await size_of(driver, volume) == max(sizes)
    assert all(found >= asked for found, asked in zip(got, sizes, strict=True))


async def test_delete_forgets_the_volume(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, MIB, HeardGrant())
    await driver.delete(volume, HeardGrant(2))

    assert await driver.measure([volume]) == {}


async def test_deleting_what_was_never_there_succeeds_and_raises_the_fence(driver: StorageDriver) -> None:
    volume, grant = uuid4(), HeardGrant(2)
    await driver.delete(volume, grant)

    assert grant.heard == [("delete", volume)]
    with pytest.raises(FenceRefused):
        await driver.create(volume, MIB, HeardGrant(1))


async def test_a_volume_can_be_made_again_by_the_attempt_that_deleted_it(driver: StorageDriver) -> None:
    volume, grant = uuid4(), HeardGrant()
    for _ in range(2):
        assert await driver.create(volume, MIB, grant) == MIB
        await driver.delete(volume, grant)

    assert await driver.measure([volume]) == {}


async def test_seal_reports_the_size_it_found(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, 7 * MIB, HeardGrant(1))

    assert await driver.seal(volume, HeardGrant(2)) == 7 * MIB


async def test_sealing_what_is_not_there_reports_no_size_and_still_shuts_out(driver: StorageDriver) -> None:
    volume = uuid4()

    assert await driver.seal(volume, HeardGrant(2)) is None
    with pytest.raises(FenceRefused):
        await driver.create(volume, MIB, HeardGrant(1))


@every_driver
async def test_measuring_what_is_not_there_finds_nothing(driver: StorageDriver) -> None:
    assert await driver.measure([uuid4()]) == {}


@every_driver
async def test_capacity_is_never_less_than_what_is_used(driver: StorageDriver) -> None:
    capacity = await driver.capacity()

    assert capacity.total is None or 0 <= capacity.used <= capacity.total


async def test_the_null_driver_keeps_nothing(tmp_path: Path) -> None:
    driver, volume = opened("null:", tmp_path), uuid4()
    await driver.create(volume, MIB, HeardGrant())

    assert await driver.measure([volume]) == {}
    assert await driver.seal(volume, HeardGrant()) is None
    assert driver.path(volume) is None
    assert await driver.capacity() == Capacity(total=None, used=0)
