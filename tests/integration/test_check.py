"""Rows at rest against the disk: every damage is found, and mended where that is safe."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from uuid_utils.compat import uuid7

from domain.services import Services, open_services
from domain.settings import Settings
from domain.snapshots.model import Snapshot
from domain.volumes.growth import Growth
from domain.volumes.model import Volume
from tests.integration.check_builders import as_repaired, folder, inspect, leave, on_disk, told
from tests.integration.job_builders import MIB, a_volume, sql, volume_row
from tests.integration.snapshot_builders import a_snapshot, a_stored_volume, all_rows, carried_out, read, snapshot_row


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    async with open_services(on_disk(settings, tmp_path)) as services:
        yield services


@pytest.fixture
async def volume(services: Services) -> Volume:
    return await a_stored_volume(services, backend="disk", content=b"bytes")


@pytest.fixture
async def snapshot(services: Services, volume: Volume) -> Snapshot:
    return await a_snapshot(services, volume)


async def test_all_agree_after_ordinary_work(services: Services, volume: Volume, snapshot: Snapshot) -> None:
    driver = services.backends.get("disk")
    await carried_out(services, await services.volumes.request_expand(volume.id, Growth(to=2 * MIB)))
    await carried_out(services, await services.snapshots.request_restore(snapshot.id))
    taken = await carried_out(services, await services.snapshots.request_take(volume.id, "another"))
    assert taken.snapshot_id is not None
    await carried_out(services, await services.snapshots.request_delete(taken.snapshot_id))
    report = await services.check().report()

    assert report.findings == []
    assert report.looked_at == {"volumes": 1, "snapshots": 1, "volumes on backends": 1}
    assert await driver.inventory(None, 10) == [volume.id]


async def test_data_that_is_not_there_is_told_and_nothing_is_done_about_it(
    services: Services, volume: Volume, snapshot: Snapshot
) -> None:
    shutil.rmtree(folder(services, volume.id))
    before = await all_rows(services)

    assert await told(services) == [
        ("data-missing", f"volume {volume.id}", False),
        ("data-missing", f"snapshot {snapshot.id}", False),
    ]
    assert not any(finding.repaired for finding in await inspect(services, repair=True))
    assert await all_rows(services) == before


async def test_rows_of_a_disk_that_is_not_mounted_are_left_alone(services: Services, tmp_path: Path) -> None:
    volume = await a_volume(services, backend="disk")
    for path in (tmp_path / "disk").iterdir():
        path.rmdir()
    (tmp_path / "disk").rmdir()

    assert [finding.repaired for finding in await inspect(services, repair=True)] == [False]
    assert (await volume_row(services, volume.id))["state"] == "available"


async def test_what_was_deleted_by_a_later_history_can_be_deleted_here_too(
    services: Services, volume: Volume, snapshot: Snapshot
) -> None:
    driver = services.backends.get("disk")
    await driver.delete_snapshot(volume.id, snapshot.id, leave(5))
    await driver.delete(volume.id, leave(7, 3))

    assert sorted(await as_repaired(services)) == ["data-missing", "data-missing", "fence-behind", "fence-behind"]
    gone, kept = await volume_row(services, volume.id), await snapshot_row(services, snapshot.id)
    assert (gone["state"], gone["version"]) == ("error", 8)
    assert (kept["state"], kept["version"]) == ("error", 6)
    assert (await carried_out(services, await services.snapshots.request_delete(snapshot.id))).status == "succeeded"
    assert (await carried_out(services, await services.volumes.request_delete(volume.id))).status == "succeeded"


async def test_a_row_takes_the_size_that_is_on_the_disk(services: Services, volume: Volume, snapshot: Snapshot) -> None:
    with (folder(services, volume.id) / "data").open("r+b") as file:
        file.truncate(3 * MIB)
    with (folder(services, volume.id) / "snapshots" / str(snapshot.id)).open("r+b") as file:
        file.truncate(2 * MIB)

    assert await as_repaired(services) == ["size-differs", "size-differs"]
    assert (await volume_row(services, volume.id))["size"] == 3 * MIB
    assert (await snapshot_row(services, snapshot.id))["size"] == 2 * MIB


async def test_an_empty_file_is_told_and_not_taken_for_a_size(services: Services, volume: Volume) -> None:
    with (folder(services, volume.id) / "data").open("r+b") as file:
        file.truncate(0)

    assert await told(services) == [("size-differs", f"volume {volume.id}", False)]
    await inspect(services, repair=True)
    assert (await volume_row(services, volume.id))["size"] == MIB


async def test_a_fence_that_is_ahead_would_refuse_every_job_and_is_caught_up_with(
    services: Services, volume: Volume, snapshot: Snapshot
) -> None:
    driver = services.backends.get("disk")
    await driver.expand(volume.id, MIB, leave(40, 2))
    await driver.seal_snapshot(volume.id, snapshot.id, leave(50))

    assert await as_repaired(services) == ["fence-behind", "fence-behind"]
    for job in (
        await services.volumes.request_expand(volume.id, Growth(to=2 * MIB)),
        await services.snapshots.request_delete(snapshot.id),
    ):
        assert (await carried_out(services, job)).status == "succeeded"


async def test_data_without_a_row_is_given_one_and_keeps_its_bytes(services: Services, volume: Volume) -> None:
    snapshot = await a_snapshot(services, volume)
    await services.backends.get("disk").expand(volume.id, MIB, leave(4))
    await sql(services, "DELETE FROM snapshots")
    await sql(services, "DELETE FROM volumes")
    (finding,) = await inspect(services)

    assert str(folder(services, volume.id)) in finding.problem
    assert finding.repairable
    assert await as_repaired(services) == ["no-row"]
    row = await volume_row(services, volume.id)
    assert (row["name"], row["state"], row["size"], row["version"]) == (f"recovered-{volume.id}", "available", MIB, 5)
    assert read(services, volume.id)[:5] == b"bytes"
    await carried_out(services, await services.volumes.request_expand(volume.id, Growth(to=2 * MIB)))
    await carried_out(services, await services.snapshots.request_restore(snapshot.id))
    await carried_out(services, await services.snapshots.request_delete(snapshot.id))
    assert await sql(services, "SELECT DISTINCT status FROM jobs") == [("succeeded",)]


async def test_a_snapshot_without_a_row_is_given_one(services: Services, volume: Volume, snapshot: Snapshot) -> None:
    await sql(services, "DELETE FROM snapshots")

    assert await told(services) == [("no-row", f"snapshot {snapshot.id}", True)]
    assert await as_repaired(services) == ["no-row"]
    row = await snapshot_row(services, snapshot.id)
    assert (row["name"], row["state"], row["volume_id"]) == (f"recovered-{snapshot.id}", "ready", volume.id)


async def test_snapshots_whose_volume_is_nowhere_are_told_and_left_alone(
    services: Services, volume: Volume, snapshot: Snapshot
) -> None:
    (folder(services, volume.id) / "data").unlink()
    await sql(services, "DELETE FROM snapshots")
    await sql(services, "DELETE FROM volumes")

    assert await told(services) == [("no-row", f"volume {volume.id}", False)]
    assert [finding.repaired for finding in await inspect(services, repair=True)] == [False]
    assert (folder(services, volume.id) / "snapshots" / str(snapshot.id)).exists()


async def test_drafts_and_trash_at_rest_are_swept(services: Services, volume: Volume, snapshot: Snapshot) -> None:
    stranger, place = uuid7(), folder(services, volume.id)
    made = [
        place / "data.3-0.tmp",
        place / "snapshots" / f"{snapshot.id}.9-0.tmp",
        place / "snapshots" / f"{uuid4()}.1-0.tmp",
        place.parent / str(stranger) / "data.1-0.tmp",
    ]
    made[3].parent.mkdir()
    for path in made:
        path.touch()
    trash = place.parent / ".trash" / f"{stranger}.1-0"
    trash.mkdir()

    assert [code for code, _, repairable in await told(services) if repairable] == ["leftover"] * 5
    assert set(await as_repaired(services)) == {"leftover"}
    assert not any(path.exists() for path in (*made, made[3].parent, trash))
    assert read(services, volume.id)[:5] == b"bytes"


async def test_trash_that_may_be_the_last_of_a_volume_is_not_swept_at_once(services: Services, volume: Volume) -> None:
    trash = folder(services, volume.id).parent / ".trash" / f"{volume.id}.5-0"
    folder(services, volume.id).rename(trash)

    assert ("leftover", f"volume {volume.id}", False) in await told(services)
    await inspect(services, repair=True)
    assert (trash / "data").exists()


async def test_what_a_volume_in_error_has_or_lacks_is_no_finding(services: Services, volume: Volume) -> None:
    await sql(services, "UPDATE volumes SET state = 'error'")
    lacking = await a_volume(services, backend="disk")
    await sql(services, "UPDATE volumes SET state = 'error', size = 77")

    assert await told(services) == []
    assert lacking.id != volume.id


async def test_volumes_of_a_backend_that_is_not_configured_are_told_once(services: Services) -> None:
    for _ in range(3):
        await a_volume(services, backend="elsewhere")

    assert await told(services) == [("no-backend", "backend 'elsewhere'", False)]


async def test_data_of_a_row_on_another_backend_is_told_and_left_alone(services: Services, volume: Volume) -> None:
    await sql(services, "UPDATE volumes SET backend = 'elsewhere'")

    found = await inspect(services, repair=True)
    assert [(one.code.value, one.repaired) for one in found] == [("no-backend", False), ("no-row", False)]
    assert read(services, volume.id)[:5] == b"bytes"


async def test_what_cannot_be_read_is_told_and_the_others_are_looked_at(services: Services, volume: Volume) -> None:
    other = await a_stored_volume(services, backend="disk")
    (folder(services, volume.id).parent / ".fences" / str(volume.id)).write_text("?")
    (folder(services, other.id) / "data").unlink()

    assert await told(services) == [
        ("unreadable", f"volume {volume.id}", False),
        ("data-missing", f"volume {other.id}", False),
    ]


@pytest.mark.parametrize("backend", ["null:", "memory:"])
async def test_a_backend_that_keeps_no_bytes_gives_nothing_to_complain_of(settings: Settings, backend: str) -> None:
    async with open_services(settings.model_copy(update={"backends": {"memory": backend}})) as services:
        volume = await a_stored_volume(services)
        await a_snapshot(services, volume)

        assert await told(services) == []


async def test_many_pages_are_walked_to_the_end(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("shelves", "strays", "live_jobs", "ledgers"):
        monkeypatch.setattr(f"domain.check.{module}.PAGE", 2)
    volumes = [await a_stored_volume(services, backend="disk") for _ in range(5)]
    for volume in volumes:
        (folder(services, volume.id) / "data").unlink()
        (folder(services, volume.id) / "data.1-0.tmp").touch()
    unknown = [uuid7() for _ in range(5)]
    for volume_id in unknown:
        await services.backends.get("disk").create(volume_id, MIB, leave(1))
    report = await services.check().report()

    assert report.looked_at == {"volumes": 5, "snapshots": 0, "volumes on backends": 10}
    assert sum(finding.code == "data-missing" for finding in report.findings) == 5
    assert sum(finding.code == "no-row" for finding in report.findings) == 5
