"""What every driver promises about snapshots; what becomes of the bytes is shown on the disk."""

from pathlib import Path
from uuid import uuid4

import pytest

from domain.storage.driver import StorageDriver
from domain.storage.errors import FenceRefused, SnapshotMissing, VolumeMissing
from tests.unit.storage_scene import MIB, HeardGrant, Scene, every_driver, opened, size_of


@pytest.fixture
async def scene(driver: StorageDriver) -> Scene:
    scene = Scene(driver)
    await scene.set()
    return scene


async def expand(scene: Scene, size: int) -> None:
    await scene.driver.expand(scene.volume, size, HeardGrant(2))


class TestTake:
    async def test_a_snapshot_has_the_size_of_its_volume(self, scene: Scene) -> None:
        await expand(scene, 5 * MIB + 1)

        assert await scene.driver.take_snapshot(scene.volume, uuid4(), HeardGrant(3)) == 5 * MIB + 1

    async def test_a_snapshot_is_never_replaced(self, scene: Scene) -> None:
        await expand(scene, 5 * MIB)

        assert await scene.driver.take_snapshot(scene.volume, scene.snapshot, HeardGrant(3)) == MIB

    async def test_a_volume_that_is_not_there_cannot_be_kept(self, driver: StorageDriver) -> None:
        volume, snapshot, grant = uuid4(), uuid4(), HeardGrant()

        with pytest.raises(VolumeMissing):
            await driver.take_snapshot(volume, snapshot, grant)

        assert grant.heard == []
        assert await driver.measure([volume]) == {}
        assert await driver.seal_snapshot(volume, snapshot, HeardGrant()) is None

    async def test_snapshots_of_one_volume_stand_side_by_side(self, scene: Scene) -> None:
        second = uuid4()
        await expand(scene, 2 * MIB)
        await scene.driver.take_snapshot(scene.volume, second, HeardGrant(3))

        await scene.driver.delete_snapshot(scene.volume, second, HeardGrant(4))

        assert await scene.sizes() == (2 * MIB, MIB, None)


class TestRestore:
    async def test_the_volume_keeps_its_present_size(self, scene: Scene) -> None:
        await expand(scene, 5 * MIB)

        assert await scene.driver.restore_snapshot(scene.volume, scene.snapshot, HeardGrant(3)) == 5 * MIB
        assert await scene.sizes() == (5 * MIB, MIB, None)

    async def test_what_is_not_there_cannot_be_restored(self, scene: Scene) -> None:
        grant = HeardGrant(3)

        with pytest.raises(SnapshotMissing):
            await scene.driver.restore_snapshot(scene.volume, uuid4(), grant)

        assert grant.heard == []
        assert await scene.sizes() == Scene.UNTOUCHED


class TestClone:
    @every_driver
    async def test_a_clone_has_the_size_asked_for(self, scene: Scene) -> None:
        assert await scene.perform("clone_snapshot", HeardGrant()) == 3 * MIB

    @pytest.mark.parametrize("size", [0, 1, MIB])
    async def test_a_clone_is_never_smaller_than_its_snapshot(self, scene: Scene, size: int) -> None:
        got = await scene.driver.clone_snapshot(scene.volume, scene.snapshot, scene.clone, size, HeardGrant())

        assert got == MIB
        assert await size_of(scene.driver, scene.clone) == MIB

    async def test_a_clone_never_replaces_a_volume(self, scene: Scene) -> None:
        await scene.driver.create(scene.clone, 7, HeardGrant())

        assert await scene.perform("clone_snapshot", HeardGrant(2)) == 7

    async def test_what_is_not_there_cannot_be_cloned(self, scene: Scene) -> None:
        grant = HeardGrant()

        with pytest.raises(SnapshotMissing):
            await scene.driver.clone_snapshot(scene.volume, uuid4(), scene.clone, MIB, grant)

        assert grant.heard == []
        assert await scene.driver.measure([scene.clone]) == {}

    async def test_a_clone_outlives_the_snapshot_and_the_volume(self, scene: Scene) -> None:
        await scene.perform("clone_snapshot", HeardGrant())
        await scene.driver.delete_snapshot(scene.volume, scene.snapshot, HeardGrant(2))
        await scene.driver.delete(scene.volume, HeardGrant(3))

        assert await scene.sizes() == (None, None, 3 * MIB)


class TestDelete:
    async def test_delete_forgets_the_snapshot_only(self, scene: Scene) -> None:
        await scene.perform("delete_snapshot", HeardGrant(2))

        assert await scene.sizes() == (MIB, None, None)

    async def test_deleting_what_was_never_there_succeeds_and_raises_the_fence(self, driver: StorageDriver) -> None:
        volume, snapshot, grant = uuid4(), uuid4(), HeardGrant(2)
        await driver.delete_snapshot(volume, snapshot, grant)

        assert grant.heard == [("delete_snapshot", snapshot)]
        with pytest.raises(FenceRefused):
            await driver.take_snapshot(volume, snapshot, HeardGrant(1))

    async def test_deleting_the_volume_takes_its_snapshots_along(self, scene: Scene) -> None:
        await scene.driver.delete(scene.volume, HeardGrant(2))

        assert await scene.sizes() == (None, None, None)


class TestSeal:
    async def test_seal_reports_the_size_it_found(self, scene: Scene) -> None:
        assert await scene.driver.seal_snapshot(scene.volume, scene.snapshot, HeardGrant(2)) == MIB

    async def test_sealing_what_is_not_there_reports_no_size_and_still_shuts_out(self, scene: Scene) -> None:
        absent = uuid4()

        assert await scene.driver.seal_snapshot(scene.volume, absent, HeardGrant(2)) is None
        with pytest.raises(FenceRefused):
            await scene.driver.take_snapshot(scene.volume, absent, HeardGrant(1))


async def test_the_null_driver_knows_no_sizes(tmp_path: Path) -> None:
    scene = Scene(opened("null:", tmp_path))

    assert await scene.perform("take_snapshot", HeardGrant()) is None
    assert await scene.perform("restore_snapshot", HeardGrant()) is None
    assert await scene.perform("seal_snapshot", HeardGrant()) is None
