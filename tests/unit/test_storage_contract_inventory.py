"""What every driver promises to those who compare what is kept with what should be."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.storage.context import Fence
from domain.storage.driver import StorageDriver, StoredObject
from domain.storage.errors import PermanentStorageError
from domain.storage.file.inventory import _lowest
from tests.unit.storage_scene import MIB, HeardGrant, Scene, opened


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Scene]:
    """The scene on a disk, under ``volumes``."""
    scene = Scene(opened("file:{}/volumes", tmp_path))
    await scene.set()
    yield scene
    await scene.driver.close()


async def listed(driver: StorageDriver, limit: int) -> list[UUID]:
    """All ids, page by page; every page but the last is full."""
    ids: list[UUID] = []
    while True:
        page = await driver.inventory(ids[-1] if ids else None, limit)
        assert page is not None
        ids += page
        if len(page) < limit:
            return ids


async def test_the_inventory_lists_every_volume_once_in_order_over_any_pages(driver: StorageDriver) -> None:
    ids = [uuid4() for _ in range(7)]
    for volume in ids:
        await driver.create(volume, MIB, HeardGrant())

    assert [await listed(driver, limit) for limit in (1, 3, 7, 100)] == [sorted(ids)] * 4


async def test_a_deleted_volume_is_listed_no_more_but_its_fence_is_still_told(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, MIB, HeardGrant())
    await driver.delete(volume, HeardGrant(4, 2))
    sighting = await driver.stat(volume, ())

    assert await listed(driver, 10) == []
    assert sighting is not None
    assert (sighting.volume, sighting.snapshots) == (StoredObject(None, Fence(4, 2)), {})


async def test_looking_tells_sizes_and_fences_of_the_volume_and_its_snapshots(driver: StorageDriver) -> None:
    scene, absent = Scene(driver), uuid4()
    await scene.set()
    await driver.expand(scene.volume, 2 * MIB, HeardGrant(3))
    sighting = await driver.stat(scene.volume, [absent])

    assert sighting is not None
    assert sighting.volume == StoredObject(2 * MIB, Fence(3, 1))
    assert sighting.snapshots == {scene.snapshot: StoredObject(MIB, Fence(1, 1)), absent: StoredObject(None, None)}
    assert list(sighting.leftovers) == []


async def test_looking_at_what_never_was_finds_nothing_and_leaves_no_trace(disk: Scene, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    sighting = await disk.driver.stat(uuid4(), [uuid4()])

    assert sighting is not None
    assert sighting.volume == StoredObject(None, None)
    assert sorted(tmp_path.rglob("*")) == before


async def test_drafts_and_trash_are_found_and_swept_and_nothing_else_is(disk: Scene, tmp_path: Path) -> None:
    root, other = tmp_path / "volumes", uuid4()
    folder = root / str(disk.volume)
    made = [
        folder / "data.7-0.tmp",
        folder / "snapshots" / f"{disk.snapshot}.7-0.tmp",
        folder / "snapshots" / f"{other}.1-0.tmp",
        root / ".trash" / f"{disk.volume}.1-0",
    ]
    for path in made[:3]:
        path.write_bytes(b"draft")
    (made[3] / "snapshots").mkdir(parents=True)
    (folder / "note.txt").write_text("a user's own")
    sighting = await disk.driver.stat(disk.volume, ())
    assert sighting is not None

    assert {leftover.path for leftover in sighting.leftovers} == set(map(str, made))
    assert {leftover.subject_id for leftover in sighting.leftovers} == {disk.volume, disk.snapshot, other}
    assert [leftover.path for leftover in sighting.leftovers if leftover.trash] == [str(made[3])]
    for _ in range(2):  # somebody else may be sweeping the same
        await disk.driver.sweep(disk.volume, sighting.leftovers)
    assert not any(path.exists() for path in made)
    assert sorted(path.name for path in folder.iterdir()) == ["data", "note.txt", "snapshots"]
    assert await disk.sizes() == Scene.UNTOUCHED


async def test_trash_and_drafts_alone_are_listed_and_gone_without_a_rest_when_swept(
    disk: Scene, tmp_path: Path
) -> None:
    root, trashed, drafted = tmp_path / "volumes", uuid4(), uuid4()
    (root / ".trash" / f"{trashed}.3-0").mkdir()
    (root / ".trash" / f"{trashed}.4-0").mkdir()
    (root / str(drafted)).mkdir()
    (root / str(drafted) / "data.1-0.tmp").touch()
    assert await listed(disk.driver, 1) == sorted([disk.volume, trashed, drafted])
    for volume in (trashed, drafted):
        sighting = await disk.driver.stat(volume, ())
        assert sighting is not None
        await disk.driver.sweep(volume, sighting.leftovers)

    assert await listed(disk.driver, 10) == [disk.volume]


async def test_names_that_are_no_ids_of_ours_are_passed_over(disk: Scene, tmp_path: Path) -> None:
    for name in ("lost+found", disk.clone.hex, str(disk.clone).upper()):
        (tmp_path / "volumes" / name).mkdir()

    assert await listed(disk.driver, 10) == [disk.volume]


async def test_a_damaged_fence_is_told_and_not_taken_for_none(disk: Scene, tmp_path: Path) -> None:
    (tmp_path / "volumes" / ".fences" / str(disk.volume)).write_text("what?")

    with pytest.raises(PermanentStorageError, match="damaged"):
        await disk.driver.stat(disk.volume, ())


async def test_the_null_driver_has_nothing_to_compare(tmp_path: Path) -> None:
    driver = opened("null:", tmp_path)

    assert await driver.inventory(None, 10) is None
    assert await driver.stat(uuid4(), ()) is None


def test_the_lowest_ids_are_found_among_many_that_come_in_any_order_and_more_than_once() -> None:
    ids = [uuid4() for _ in range(500)]

    assert _lowest([*ids, *reversed(ids)], 20) == sorted(ids)[:20]
