"""What every driver promises about attempts: late, repeated, stopped, sealed off. For every operation."""

from uuid import uuid4

import pytest

from domain.storage.context import Stopped, StopReason
from domain.storage.driver import StorageDriver
from domain.storage.errors import FenceRefused
from tests.unit.storage_scene import (
    MIB,
    SEALS,
    HeardGrant,
    Scene,
    every_change,
    every_driver,
    every_operation,
)


@pytest.fixture
async def scene(driver: StorageDriver) -> Scene:
    scene = Scene(driver)
    await scene.set()
    return scene


@every_operation
@pytest.mark.parametrize("late", [(4, 9), (5, 1)])
async def test_a_lower_fence_is_refused_and_changes_nothing(
    scene: Scene, operation: str, late: tuple[int, int]
) -> None:
    grant = HeardGrant(*late)
    await scene.seal(operation, HeardGrant(5, 2))

    with pytest.raises(FenceRefused):
        await scene.perform(operation, grant)

    assert grant.heard == []
    assert await scene.sizes() == Scene.UNTOUCHED


@every_operation
async def test_the_fence_belongs_to_what_is_published_and_to_nothing_else(scene: Scene, operation: str) -> None:
    for other in {scene.volume, scene.snapshot, scene.clone} - {scene.subject(operation)}:
        await scene.driver.seal(other, HeardGrant(9))

    await scene.perform(operation, HeardGrant(2))


@every_operation
async def test_every_effect_raises_its_fence(scene: Scene, operation: str) -> None:
    await scene.perform(operation, HeardGrant(5, 2))

    with pytest.raises(FenceRefused):
        await scene.seal(operation, HeardGrant(5, 1))


@every_operation
async def test_delete_remembers_the_fence(scene: Scene, operation: str) -> None:
    await scene.driver.delete_snapshot(scene.volume, scene.snapshot, HeardGrant(2))
    for volume in (scene.volume, scene.clone):
        await scene.driver.delete(volume, HeardGrant(2))

    with pytest.raises(FenceRefused):
        await scene.perform(operation, HeardGrant(1, 7))
    assert await scene.sizes() == (None, None, None)


@every_operation
async def test_the_same_attempt_may_publish_twice(scene: Scene, operation: str) -> None:
    grant = HeardGrant(2)
    first = await scene.perform(operation, grant)

    assert await scene.perform(operation, grant) == first
    assert grant.heard == [(operation, scene.subject(operation))] * 2


@every_operation
async def test_a_later_attempt_finds_the_work_done(driver: StorageDriver, operation: str) -> None:
    once, twice = Scene(driver), Scene(driver)
    for scene in (once, twice):
        await scene.set()
        first = await scene.perform(operation, HeardGrant(2, 1))

    again = await twice.perform(operation, HeardGrant(2, 2))

    assert again == first
    assert await twice.sizes() == await once.sizes()


async def test_volumes_do_not_share_a_fence(driver: StorageDriver) -> None:
    await driver.create(uuid4(), MIB, HeardGrant(9))

    assert await driver.create(uuid4(), MIB, HeardGrant(1)) == MIB


@every_driver
@every_operation
async def test_every_effect_is_told_once(scene: Scene, operation: str) -> None:
    grant = HeardGrant(2)

    await scene.perform(operation, grant)

    assert grant.heard == [(operation, scene.subject(operation))]


@every_driver
@every_change
async def test_a_stopped_attempt_publishes_nothing(scene: Scene, operation: str) -> None:
    before = await scene.sizes()
    for reason in StopReason:
        grant = HeardGrant(2)
        grant.stop(reason)
        with pytest.raises(Stopped) as stopped:
            await scene.perform(operation, grant)
        assert stopped.value.reason is reason
        assert grant.heard == []

    assert await scene.sizes() == before


@every_driver
@every_change
async def test_an_attempt_past_its_lease_publishes_nothing(scene: Scene, operation: str) -> None:
    grant, before = HeardGrant(2, deadline=10.0, now=10.0), await scene.sizes()

    with pytest.raises(Stopped) as stopped:
        await scene.perform(operation, grant)

    assert stopped.value.reason is StopReason.LEASE_LOST
    assert grant.heard == []
    assert await scene.sizes() == before


@every_change
async def test_an_attempt_that_did_not_publish_leaves_the_fence_alone(scene: Scene, operation: str) -> None:
    stopped = HeardGrant(9)
    stopped.stop(StopReason.SHUTDOWN)
    with pytest.raises(Stopped):
        await scene.perform(operation, stopped)

    await scene.perform(operation, HeardGrant(2))


async def test_an_extended_lease_lets_the_attempt_publish(driver: StorageDriver) -> None:
    grant = HeardGrant(deadline=10.0, now=10.0)
    grant.extend(20.0)

    assert await driver.create(uuid4(), MIB, grant) == MIB


@every_driver
@pytest.mark.parametrize("operation", SEALS)
async def test_a_stopped_attempt_can_still_seal(scene: Scene, operation: str) -> None:
    grant = HeardGrant(2, deadline=0.0)
    grant.stop(StopReason.CANCELLED)

    await scene.perform(operation, grant)

    assert grant.heard == [(operation, scene.subject(operation))]
