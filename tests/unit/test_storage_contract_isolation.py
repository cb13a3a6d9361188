"""What every driver must do when a volume is isolated from a lost node."""

from uuid import uuid4

import pytest

from domain.storage.driver import StorageDriver
from domain.storage.errors import FenceRefused, VolumeMissing
from tests.unit.storage_builders import MIB, RecordingGrant, Scenario, size_of


@pytest.fixture
async def scenario(driver: StorageDriver) -> Scenario:
    scenario = Scenario(driver)
    await scenario.set_up()
    return scenario


async def test_isolated_volume_keeps_its_size_and_its_snapshot(scenario: Scenario) -> None:
    assert await scenario.driver.isolate(scenario.volume, RecordingGrant(3)) == MIB
    assert await scenario.driver.isolate(scenario.volume, RecordingGrant(3)) == MIB

    assert await scenario.sizes() == scenario.UNTOUCHED


async def test_isolating_an_absent_volume_fails(driver: StorageDriver) -> None:
    absent = uuid4()
    with pytest.raises(VolumeMissing):
        await driver.isolate(absent, RecordingGrant())

    assert await size_of(driver, absent) is None


async def test_isolation_bars_earlier_attempts_and_is_barred_by_later_ones(scenario: Scenario) -> None:
    await scenario.driver.isolate(scenario.volume, RecordingGrant(5))

    with pytest.raises(FenceRefused):
        await scenario.driver.expand(scenario.volume, 2 * MIB, RecordingGrant(4))
    with pytest.raises(FenceRefused):
        await scenario.driver.isolate(scenario.volume, RecordingGrant(4))
