"""The contract of every driver for stale, repeated, stopped and sealed attempts, for every operation."""

from uuid import uuid4

import pytest

from domain.storage.context import Stopped, StopReason
from domain.storage.driver import StorageDriver
from domain.storage.errors import FenceRefused
from tests.unit.storage_builders import (
    MIB,
    SEALS,
    RecordingGrant,
    Scenario,
    every_change,
    every_driver,
    every_operation,
)


@pytest.fixture
async def scenario(driver: StorageDriver) -> Scenario:
    scenario = Scenario(driver)
    await scenario.set_up()
    return scenario


@every_operation
@pytest.mark.parametrize("stale", [(4, 9), (5, 1)])
async def test_lower_fence_is_refused_and_changes_nothing(
    scenario: Scenario, operation: str, stale: tuple[int, int]
) -> None:
    grant = RecordingGrant(*stale)
    await scenario.seal(operation, RecordingGrant(5, 2))

    with pytest.raises(FenceRefused) as refused:
        await scenario.perform(operation, grant)

    assert refused.value.stored == (5, 2)
    assert grant.published == []
    assert await scenario.sizes() == Scenario.UNTOUCHED


@every_operation
async def test_fence_belongs_only_to_the_published_subject(scenario: Scenario, operation: str) -> None:
    for other in {scenario.volume, scenario.snapshot, scenario.clone} - {scenario.subject(operation)}:
        await scenario.driver.seal(other, RecordingGrant(9))

    await scenario.perform(operation, RecordingGrant(2))


@every_operation
async def test_every_operation_raises_its_fence(scenario: Scenario, operation: str) -> None:
    await scenario.perform(operation, RecordingGrant(5, 2))

    with pytest.raises(FenceRefused):
        await scenario.seal(operation, RecordingGrant(5, 1))


@every_operation
async def test_delete_keeps_the_fence(scenario: Scenario, operation: str) -> None:
    await scenario.driver.delete_snapshot(scenario.volume, scenario.snapshot, RecordingGrant(2))
    for volume in (scenario.volume, scenario.clone):
        await scenario.driver.delete(volume, RecordingGrant(2))

    with pytest.raises(FenceRefused):
        await scenario.perform(operation, RecordingGrant(1, 7))
    assert await scenario.sizes() == (None, None, None)


@every_operation
async def test_same_attempt_may_publish_twice(scenario: Scenario, operation: str) -> None:
    grant = RecordingGrant(2)
    first = await scenario.perform(operation, grant)

    assert await scenario.perform(operation, grant) == first
    assert grant.published == [(operation, scenario.subject(operation))] * 2


@every_operation
async def test_later_attempt_finds_the_work_done(driver: StorageDriver, operation: str) -> None:
    once, twice = Scenario(driver), Scenario(driver)
    for scenario in (once, twice):
        await scenario.set_up()
        first = await scenario.perform(operation, RecordingGrant(2, 1))

    again = await twice.perform(operation, RecordingGrant(2, 2))

    assert again == first
    assert await twice.sizes() == await once.sizes()


async def test_volumes_do_not_share_a_fence(driver: StorageDriver) -> None:
    await driver.create(uuid4(), MIB, RecordingGrant(9))

    assert await driver.create(uuid4(), MIB, RecordingGrant(1)) == MIB


@every_driver
@every_operation
async def test_on_published_is_called_once_per_effect(scenario: Scenario, operation: str) -> None:
    grant = RecordingGrant(2)

    await scenario.perform(operation, grant)

    assert grant.published == [(operation, scenario.subject(operation))]


@every_driver
@every_change
async def test_stopped_attempt_publishes_nothing(scenario: Scenario, operation: str) -> None:
    before = await scenario.sizes()
    for reason in StopReason:
        grant = RecordingGrant(2)
        grant.stop(reason)
        with pytest.raises(Stopped) as stopped:
            await scenario.perform(operation, grant)
        assert stopped.value.reason is reason
        assert grant.published == []

    assert await scenario.sizes() == before


@every_driver
@every_change
async def test_attempt_past_its_lease_publishes_nothing(scenario: Scenario, operation: str) -> None:
    grant, before = RecordingGrant(2, deadline=10.0, now=10.0), await scenario.sizes()

    with pytest.raises(Stopped) as stopped:
        await scenario.perform(operation, grant)

    assert stopped.value.reason is StopReason.LEASE_LOST
    assert grant.published == []
    assert await scenario.sizes() == before


@every_change
async def test_attempt_that_did_not_publish_does_not_raise_the_fence(scenario: Scenario, operation: str) -> None:
    stopped = RecordingGrant(9)
    stopped.stop(StopReason.SHUTDOWN)
    with pytest.raises(Stopped):
        await scenario.perform(operation, stopped)

    await scenario.perform(operation, RecordingGrant(2))


async def test_attempt_with_an_extended_lease_publishes(driver: StorageDriver) -> None:
    grant = RecordingGrant(deadline=10.0, now=10.0)
    grant.extend(20.0)

    assert await driver.create(uuid4(), MIB, grant) == MIB


@every_driver
@pytest.mark.parametrize("operation", SEALS)
async def test_stopped_attempt_can_still_seal(scenario: Scenario, operation: str) -> None:
    grant = RecordingGrant(2, deadline=0.0)
    grant.stop(StopReason.CANCELLED)

    await scenario.perform(operation, grant)

    assert grant.published == [(operation, scenario.subject(operation))]
