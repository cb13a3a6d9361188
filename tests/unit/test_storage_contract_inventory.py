"""The contract of every driver for `cistern check`: inventory, stat and sweep."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.storage.context import Fence
from domain.storage.driver import StorageDriver, StoredObject
from domain.storage.errors import PermanentStorageError
from domain.storage.file.tree import _lowest
from tests.unit.storage_builders import MIB, RecordingGrant, Scenario, open_in


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Scenario]:
    """The scenario on a disk, under ``volumes``."""
    scenario = Scenario(open_in(tmp_path, "file:{}/volumes"))
    await scenario.set_up()
    yield scenario
    await scenario.driver.close()


async def list_all(driver: StorageDriver, limit: int) -> list[UUID]:
    """Return all ids, page by page; every page but the last is full."""
    ids: list[UUID] = []
    while True:
        page = await driver.inventory(ids[-1] if ids else None, limit)
        assert page is not None
        ids += page
        if len(page) < limit:
            return ids


async def test_inventory_lists_every_volume_once_in_order_for_any_page_size(driver: StorageDriver) -> None:
    ids = [uuid4() for _ in range(7)]
    for volume in ids:
        await driver.create(volume, MIB, RecordingGrant())

    assert [await list_all(driver, limit) for limit in (1, 3, 7, 100)] == [sorted(ids)] * 4


async def test_deleted_volume_is_not_listed_but_stat_still_returns_its_fence(driver: StorageDriver) -> None:
    volume = uuid4()
    await driver.create(volume, MIB, RecordingGrant())
    await driver.delete(volume, RecordingGrant(4, 2))
    stored = await driver.stat(volume, ())

    assert await list_all(driver, 10) == []
    assert stored is not None
    assert (stored.volume, stored.snapshots) == (StoredObject(None, Fence(4, 2)), {})


async def test_stat_returns_sizes_and_fences_of_the_volume_and_its_snapshots(driver: StorageDriver) -> None:
    scenario, absent = Scenario(driver), uuid4()
    await scenario.set_up()
    await driver.expand(scenario.volume, 2 * MIB, RecordingGrant(3))
    stored = await driver.stat(scenario.volume, [absent])

    assert stored is not None
    assert stored.volume == StoredObject(2 * MIB, Fence(3, 1))
    assert stored.snapshots == {scenario.snapshot: StoredObject(MIB, Fence(1, 1)), absent: StoredObject(None, None)}
    assert list(stored.leftovers) == []


async def test_stat_of_an_unknown_volume_returns_nothing_and_creates_no_file(disk: Scenario, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    stored = await disk.driver.stat(uuid4(), [uuid4()])

    assert stored is not None
    assert stored.volume == StoredObject(None, None)
    assert sorted(tmp_path.rglob("*")) == before


async def test_sweep_removes_drafts_and_trash_and_nothing_else(disk: Scenario, tmp_path: Path) -> None:
    root, other = tmp_path / "volumes", uuid4()
    folder = root / str(disk.volume)
    paths = [
        folder / "data.7-0.tmp",
        folder / "snapshots" / f"{disk.snapshot}.7-0.tmp",
        folder / "snapshots" / f"{other}.1-0.tmp",
        root / ".trash" / f"{disk.volume}.1-0",
    ]
    for path in paths[:3]:
        path.write_bytes(b"draft")
    (paths[3] / "snapshots").mkdir(parents=True)
    (folder / "note.txt").write_text("a user's file")
    stored = await disk.driver.stat(disk.volume, ())
    assert stored is not None

    assert {leftover.path for leftover in stored.leftovers} == set(map(str, paths))
    assert {leftover.subject_id for leftover in stored.leftovers} == {disk.volume, disk.snapshot, other}
    assert [leftover.path for leftover in stored.leftovers if leftover.trash] == [str(paths[3])]
    for _ in range(2):  # another process may sweep the same leftovers
        await disk.driver.sweep(disk.volume, stored.leftovers)
    assert not any(path.exists() for path in paths)
    assert sorted(path.name for path in folder.iterdir()) == ["data", "note.txt", "snapshots"]
    assert await disk.sizes() == Scenario.UNTOUCHED


async def test_volumes_with_only_trash_or_drafts_are_listed_until_swept(disk: Scenario, tmp_path: Path) -> None:
    root, trashed, drafted = tmp_path / "volumes", uuid4(), uuid4()
    (root / ".trash" / f"{trashed}.3-0").mkdir()
    (root / ".trash" / f"{trashed}.4-0").mkdir()
    (root / str(drafted)).mkdir()
    (root / str(drafted) / "data.1-0.tmp").touch()
    assert await list_all(disk.driver, 1) == sorted([disk.volume, trashed, drafted])
    for volume in (trashed, drafted):
        stored = await disk.driver.stat(volume, ())
        assert stored is not None
        await disk.driver.sweep(volume, stored.leftovers)

    assert await list_all(disk.driver, 10) == [disk.volume]


async def test_inventory_ignores_names_that_the_driver_did_not_give(disk: Scenario, tmp_path: Path) -> None:
    for name in ("lost+found", disk.clone.hex, str(disk.clone).upper()):
        (tmp_path / "volumes" / name).mkdir()

    assert await list_all(disk.driver, 10) == [disk.volume]


async def test_stat_reports_a_damaged_fence_instead_of_an_absent_one(disk: Scenario, tmp_path: Path) -> None:
    (tmp_path / "volumes" / ".fences" / str(disk.volume)).write_text("what?")

    with pytest.raises(PermanentStorageError, match="damaged"):
        await disk.driver.stat(disk.volume, ())


async def test_null_driver_has_no_inventory(tmp_path: Path) -> None:
    driver = open_in(tmp_path, "null:")

    assert await driver.inventory(None, 10) is None
    assert await driver.stat(uuid4(), ()) is None


def test_lowest_ids_are_found_among_unordered_duplicates() -> None:
    ids = [uuid4() for _ in range(500)]

    assert _lowest([*ids, *reversed(ids)], 20) == sorted(ids)[:20]
