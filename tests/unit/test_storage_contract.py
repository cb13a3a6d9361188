"""What every driver promises. A new driver joins by adding its URL to `KEEPING`."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.storage import fence
from domain.storage.backends import open_driver
from domain.storage.driver import (
    Capacity,
    Fence,
    FenceRefused,
    Grant,
    Stopped,
    StopReason,
    StorageDriver,
    VolumeMissing,
)

MIB = 1024 * 1024
KEEPING = [
    "file:{}/volumes",
    "memory:",
    "faulty+file:{}/volumes?journal={}/journal",
    "faulty+memory:?journal={}/journal",
]
every_driver = pytest.mark.parametrize("driver", [*KEEPING, "null:"], indirect=True)
every_change = pytest.mark.parametrize("operation", ["create", "expand", "delete"])
every_operation = pytest.mark.parametrize("operation", ["create", "expand", "delete", "seal"])


class HeardGrant(Grant):
    """A grant that remembers what was published with it."""

    def __init__(self, version: int = 1, rings: int = 1, *, deadline: float = 10.0, now: float = 0.0) -> None:
        super().__init__(uuid4(), Fence(version, rings), deadline, clock=lambda: now)
        self.heard: list[tuple[str, UUID]] = []

    def published(self, operation: str, volume_id: UUID) -> None:
        self.heard.append((operation, volume_id))


@pytest.fixture(params=KEEPING)
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StorageDriver]:
    driver = open_driver(request.param.replace("{}", str(tmp_path)), threads=8)
    yield driver
    await driver.close()


async def perform(driver: StorageDriver, operation: str, volume: UUID, grant: Grant) -> object:
    if operation in ("create", "expand"):
        return await getattr(driver, operation)(volume, 3 * MIB, grant)
    return await getattr(driver, operation)(volume, grant)


async def size_of(driver: StorageDriver, volume: UUID) -> int | None:
    usage = await driver.measure(volume)
    return usage.size if usage else None


@every_driver
async def test_create_gives_exactly_the_size_asked_for(driver: StorageDriver) -> None:
    assert await driver.create(uuid4(), 12_345_678, HeardGrant()) == 12_345_678


async def test_a_created_volume_has_its_size_and_takes_next_to_no_room(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, 100 * MIB, HeardGrant())

    usage = await driver.measure(volume)

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
    monkeypatch.setattr(fence, "PATIENCE", 30.0)
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

    assert await driver.measure(volume) is None


@every_operation
async def test_delete_remembers_the_fence(driver: StorageDriver, operation: str) -> None:
    volume = uuid4()
    await driver.create(volume, MIB, HeardGrant())
    await driver.delete(volume, HeardGrant(2))

    with pytest.raises(FenceRefused):
        await perform(driver, operation, volume, HeardGrant(1, 7))
    assert await driver.measure(volume) is None


async def test_deleting_what_was_never_there_succeeds_and_raises_the_fence(driver: StorageDriver) -> None:
    volume, grant = uuid4(), HeardGrant(2)
    await driver.delete(volume, grant)

    assert grant.heard == [("delete", volume)]
    with pytest.raises(FenceRefused):
        await driver.create(volume, MIB, HeardGrant(1))


@every_operation
@pytest.mark.parametrize("late", [(4, 9), (5, 1)])
async def test_a_lower_fence_is_refused_and_changes_nothing(
    driver: StorageDriver, operation: str, late: tuple[int, int]
) -> None:
    volume, grant = uuid4(), HeardGrant(*late)
    await driver.create(volume, MIB, HeardGrant(5, 2))

    with pytest.raises(FenceRefused):
        await perform(driver, operation, volume, grant)

    assert grant.heard == []
    assert await size_of(driver, volume) == MIB
    assert await driver.expand(volume, 2 * MIB, HeardGrant(5, 2)) == 2 * MIB


@every_operation
async def test_the_same_attempt_may_publish_twice(driver: StorageDriver, operation: str) -> None:
    volume, grant = uuid4(), HeardGrant()
    await driver.create(volume, MIB, grant)

    first = await perform(driver, operation, volume, grant)
    before = await size_of(driver, volume)
    again = await perform(driver, operation, volume, grant)

    assert again == (None if operation == "delete" else first)
    assert await size_of(driver, volume) == before


@every_operation
async def test_a_later_attempt_finds_the_work_done(driver: StorageDriver, operation: str) -> None:
    volume, late = uuid4(), HeardGrant(1, 3)
    await driver.create(volume, MIB, HeardGrant(1, 1))
    first = await perform(driver, operation, volume, HeardGrant(1, 2))

    assert await perform(driver, operation, volume, late) == first
    assert late.heard == [(operation, volume)]


async def test_a_volume_can_be_made_again_by_the_attempt_that_deleted_it(driver: StorageDriver) -> None:
    volume, grant = uuid4(), HeardGrant()
    for _ in range(2):
        assert await driver.create(volume, MIB, grant) == MIB
        await driver.delete(volume, grant)

    assert await driver.measure(volume) is None


async def test_volumes_do_not_share_a_fence(driver: StorageDriver) -> None:
    await driver.create(uuid4(), MIB, HeardGrant(9))

    assert await driver.create(uuid4(), MIB, HeardGrant(1)) == MIB


@every_driver
@every_operation
async def test_every_effect_is_told_once(driver: StorageDriver, operation: str) -> None:
    volume, grant = uuid4(), HeardGrant(2)
    await driver.create(volume, MIB, HeardGrant())

    await perform(driver, operation, volume, grant)

    assert grant.heard == [(operation, volume)]


@every_driver
@every_change
@pytest.mark.parametrize("reason", list(StopReason))
async def test_a_stopped_attempt_publishes_nothing(driver: StorageDriver, operation: str, reason: StopReason) -> None:
    volume, grant = uuid4(), HeardGrant(2)
    await driver.create(volume, MIB, HeardGrant())
    before = await size_of(driver, volume)
    grant.stop(reason)

    with pytest.raises(Stopped) as stopped:
        await perform(driver, operation, volume, grant)

    assert stopped.value.reason is reason
    assert grant.heard == []
    assert await size_of(driver, volume) == before


@every_driver
@every_change
async def test_an_attempt_past_its_lease_publishes_nothing(driver: StorageDriver, operation: str) -> None:
    volume, grant = uuid4(), HeardGrant(2, deadline=10.0, now=10.0)
    await driver.create(volume, MIB, HeardGrant())
    before = await size_of(driver, volume)

    with pytest.raises(Stopped) as stopped:
        await perform(driver, operation, volume, grant)

    assert stopped.value.reason is StopReason.LEASE_LOST
    assert grant.heard == []
    assert await size_of(driver, volume) == before


@every_change
async def test_an_attempt_that_did_not_publish_leaves_the_fence_alone(driver: StorageDriver, operation: str) -> None:
    volume, stopped = uuid4(), HeardGrant(9)
    await driver.create(volume, MIB, HeardGrant())
    stopped.stop(StopReason.SHUTDOWN)
    with pytest.raises(Stopped):
        await perform(driver, operation, volume, stopped)

    assert await driver.expand(volume, 2 * MIB, HeardGrant(2)) == 2 * MIB


@every_driver
async def test_an_extended_lease_lets_the_attempt_publish(driver: StorageDriver) -> None:
    grant = HeardGrant(deadline=10.0, now=10.0)
    grant.extend(20.0)

    assert await driver.create(uuid4(), MIB, grant) == MIB


@every_change
async def test_seal_shuts_out_every_earlier_attempt(driver: StorageDriver, operation: str) -> None:
    volume = uuid4()
    await driver.create(volume, MIB, HeardGrant(1))
    await driver.seal(volume, HeardGrant(2, 2))

    with pytest.raises(FenceRefused):
        await perform(driver, operation, volume, HeardGrant(2, 1))
    assert await size_of(driver, volume) == MIB


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
async def test_a_stopped_attempt_can_still_seal(driver: StorageDriver) -> None:
    volume, grant = uuid4(), HeardGrant(2, deadline=0.0)
    grant.stop(StopReason.CANCELLED)

    await driver.seal(volume, grant)

    assert grant.heard == [("seal", volume)]


@every_driver
async def test_measuring_what_is_not_there_finds_nothing(driver: StorageDriver) -> None:
    assert await driver.measure(uuid4()) is None


@every_driver
async def test_capacity_is_never_less_than_what_is_used(driver: StorageDriver) -> None:
    capacity = await driver.capacity()

    assert capacity.total is None or 0 <= capacity.used <= capacity.total


async def test_the_null_driver_keeps_nothing() -> None:
    driver, volume = open_driver("null:", threads=1), uuid4()
    await driver.create(volume, MIB, HeardGrant())

    assert await driver.measure(volume) is None
    assert await driver.seal(volume, HeardGrant()) is None
    assert driver.path(volume) is None
    assert await driver.capacity() == Capacity(total=None, used=0)
