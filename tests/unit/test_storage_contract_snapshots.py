"""The contract of every driver for snapshots; `test_storage_snapshots` tests the bytes on disk."""

from pathlib import Path
from uuid import uuid4

import pytest

from domain.storage.driver import StorageDriver, Taken
from domain.storage.errors import FenceRefused, SnapshotMissing, VolumeMissing
from tests.unit.storage_builders import MIB, RecordingGrant, Scenario, every_driver, open_in, size_of


@pytest.fixture
async def scenario(driver: StorageDriver) -> Scenario:
    scenario = Scenario(driver)
    await scenario.set_up()
    return scenario


async def expand(scenario: Scenario, size: int) -> None:
    await scenario.driver.expand(scenario.volume, size, RecordingGrant(2))


class TestTake:
    async def test_snapshot_has_the_size_of_its_volume(self, scenario: Scenario) -> None:
        await expand(scenario, 5 * MIB + 1)

        taken = await scenario.driver.take_snapshot(scenario.volume, uuid4(), RecordingGrant(3))

        assert taken.size == 5 * MIB + 1

    async def test_take_never_replaces_a_snapshot(self, scenario: Scenario) -> None:
        await expand(scenario, 5 * MIB)

        taken = await scenario.driver.take_snapshot(scenario.volume, scenario.snapshot, RecordingGrant(3))

        assert taken.size == MIB

    async def test_taking_a_snapshot_of_an_absent_volume_fails(self, driver: StorageDriver) -> None:
        volume, snapshot, grant = uuid4(), uuid4(), RecordingGrant()

        with pytest.raises(VolumeMissing):
            await driver.take_snapshot(volume, snapshot, grant)

        assert grant.published == []
        assert await driver.measure([volume]) == {}
        assert await driver.seal_snapshot(volume, snapshot, RecordingGrant()) is None

    async def test_snapshots_of_one_volume_are_independent(self, scenario: Scenario) -> None:
        second = uuid4()
        await expand(scenario, 2 * MIB)
        await scenario.driver.take_snapshot(scenario.volume, second, RecordingGrant(3))

        await scenario.driver.delete_snapshot(scenario.volume, second, RecordingGrant(4))

        assert await scenario.sizes() == (2 * MIB, MIB, None)


class TestRestore:
    async def test_restored_volume_keeps_its_current_size(self, scenario: Scenario) -> None:
        await expand(scenario, 5 * MIB)

        assert await scenario.driver.restore_snapshot(scenario.volume, scenario.snapshot, RecordingGrant(3)) == 5 * MIB
        assert await scenario.sizes() == (5 * MIB, MIB, None)

    async def test_restoring_an_absent_snapshot_fails(self, scenario: Scenario) -> None:
        grant = RecordingGrant(3)

        with pytest.raises(SnapshotMissing):
            await scenario.driver.restore_snapshot(scenario.volume, uuid4(), grant)

        assert grant.published == []
        assert await scenario.sizes() == Scenario.UNTOUCHED


class TestClone:
    @every_driver
    async def test_clone_has_the_requested_size(self, scenario: Scenario) -> None:
        assert await scenario.perform("clone_snapshot", RecordingGrant()) == 3 * MIB

    @pytest.mark.parametrize("size", [0, 1, MIB])
    async def test_clone_is_never_smaller_than_its_snapshot(self, scenario: Scenario, size: int) -> None:
        grant = RecordingGrant()

        assert (
            await scenario.driver.clone_snapshot(scenario.volume, scenario.snapshot, scenario.clone, size, grant) == MIB
        )
        assert await size_of(scenario.driver, scenario.clone) == MIB

    async def test_clone_never_replaces_a_volume(self, scenario: Scenario) -> None:
        await scenario.driver.create(scenario.clone, 7, RecordingGrant())

        assert await scenario.perform("clone_snapshot", RecordingGrant(2)) == 7

    async def test_cloning_an_absent_snapshot_fails(self, scenario: Scenario) -> None:
        grant = RecordingGrant()

        with pytest.raises(SnapshotMissing):
            await scenario.driver.clone_snapshot(scenario.volume, uuid4(), scenario.clone, MIB, grant)

        assert grant.published == []
        assert await scenario.driver.measure([scenario.clone]) == {}

    async def test_clone_outlives_the_snapshot_and_the_volume(self, scenario: Scenario) -> None:
        await scenario.perform("clone_snapshot", RecordingGrant())
        await scenario.driver.delete_snapshot(scenario.volume, scenario.snapshot, RecordingGrant(2))
        await scenario.driver.delete(scenario.volume, RecordingGrant(3))

        assert await scenario.sizes() == (None, None, 3 * MIB)


class TestDelete:
    async def test_delete_removes_only_the_snapshot(self, scenario: Scenario) -> None:
        await scenario.perform("delete_snapshot", RecordingGrant(2))

        assert await scenario.sizes() == (MIB, None, None)

    async def test_deleting_an_absent_subject_succeeds_and_raises_the_fence(self, driver: StorageDriver) -> None:
        volume, snapshot, grant = uuid4(), uuid4(), RecordingGrant(2)
        await driver.delete_snapshot(volume, snapshot, grant)

        assert grant.published == [("delete_snapshot", snapshot)]
        with pytest.raises(FenceRefused):
            await driver.take_snapshot(volume, snapshot, RecordingGrant(1))

    async def test_deleting_the_volume_removes_its_snapshots(self, scenario: Scenario) -> None:
        await scenario.driver.delete(scenario.volume, RecordingGrant(2))

        assert await scenario.sizes() == (None, None, None)


class TestSeal:
    async def test_seal_returns_the_stored_size(self, scenario: Scenario) -> None:
        assert await scenario.driver.seal_snapshot(scenario.volume, scenario.snapshot, RecordingGrant(2)) == MIB

    async def test_sealing_an_absent_subject_returns_no_size_and_raises_the_fence(self, scenario: Scenario) -> None:
        absent = uuid4()

        assert await scenario.driver.seal_snapshot(scenario.volume, absent, RecordingGrant(2)) is None
        with pytest.raises(FenceRefused):
            await scenario.driver.take_snapshot(scenario.volume, absent, RecordingGrant(1))


async def test_null_driver_returns_no_sizes(tmp_path: Path) -> None:
    scenario = Scenario(open_in(tmp_path, "null:"))

    assert await scenario.perform("take_snapshot", RecordingGrant()) == Taken(None, shared=True)
    assert await scenario.perform("restore_snapshot", RecordingGrant()) is None
    assert await scenario.perform("seal_snapshot", RecordingGrant()) is None
