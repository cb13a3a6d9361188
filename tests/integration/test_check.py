"""Idle rows against the disk: every difference is found, and repaired where that is safe."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from uuid_utils.compat import uuid7

from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.snapshots.model import Snapshot
from domain.volumes.model import Growth, Volume
from domain.volumes.service import NewVolume
from tests.integration.check_builders import findings, folder, grant_at, on_disk, repair_all, report, run_check
from tests.integration.job_builders import MIB, a_volume, an_engine, sql, volume_row
from tests.integration.project_builders import a_project
from tests.integration.snapshot_builders import (
    a_snapshot,
    a_stored_volume,
    all_rows,
    attempted,
    carried_out,
    read,
    settled,
    snapshot_row,
)


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    async with open_services(on_disk(settings, tmp_path), adopt=True) as services:
        yield services


@pytest.fixture
async def volume(services: Services) -> Volume:
    return await a_stored_volume(services, backend="disk", content=b"bytes")


@pytest.fixture
async def snapshot(services: Services, volume: Volume) -> Snapshot:
    return await a_snapshot(services, volume)


async def test_check_finds_nothing_after_ordinary_work(services: Services, volume: Volume, snapshot: Snapshot) -> None:
    driver = services.backends.get("disk")
    await carried_out(services, await services.volumes.request_expand(volume.id, Growth(to=2 * MIB)))
    await carried_out(services, await services.snapshots.request_restore(snapshot.id))
    taken = await carried_out(services, await services.snapshots.request_take(volume.id, "another"))
    assert taken.snapshot_id is not None
    await carried_out(services, await services.snapshots.request_delete(taken.snapshot_id))
    found, checked = await report(services)

    assert found == []
    assert checked == {"volumes": 1, "snapshots": 1, "volumes on backends": 1}
    assert await driver.inventory(None, 10) == [volume.id]


async def test_missing_data_is_reported_and_not_repaired(
    services: Services, volume: Volume, snapshot: Snapshot
) -> None:
    shutil.rmtree(folder(services, volume.id))
    before = await all_rows(services)

    assert await findings(services) == [
        ("data-missing", f"volume {volume.id}", False),
        ("data-missing", f"snapshot {snapshot.id}", False),
    ]
    assert not any(finding.repaired for finding in await run_check(services, repair=True))
    assert await all_rows(services) == before


async def test_rows_of_an_unmounted_disk_are_not_changed(services: Services, tmp_path: Path) -> None:
    volume = await a_volume(services, backend="disk")
    shutil.rmtree(tmp_path / "disk")

    assert [finding.repaired for finding in await run_check(services, repair=True)] == [False]
    assert (await volume_row(services, volume.id))["state"] == "available"


async def test_data_deleted_by_a_later_attempt_can_be_deleted_from_the_database(
    services: Services, volume: Volume, snapshot: Snapshot
) -> None:
    driver = services.backends.get("disk")
    await driver.delete_snapshot(volume.id, snapshot.id, grant_at(5))
    await driver.delete(volume.id, grant_at(7, 3))

    assert sorted(await repair_all(services)) == ["data-missing", "data-missing", "fence-behind", "fence-behind"]
    gone, kept = await volume_row(services, volume.id), await snapshot_row(services, snapshot.id)
    assert (gone["state"], gone["version"]) == ("error", 8)
    assert (kept["state"], kept["version"]) == ("error", 6)
    assert (await carried_out(services, await services.snapshots.request_delete(snapshot.id))).status == "succeeded"
    assert (await carried_out(services, await services.volumes.request_delete(volume.id))).status == "succeeded"


async def test_repair_sets_the_row_to_the_size_on_disk(services: Services, volume: Volume, snapshot: Snapshot) -> None:
    with (folder(services, volume.id) / "data").open("r+b") as file:
        file.truncate(3 * MIB)
    with (folder(services, volume.id) / "snapshots" / str(snapshot.id)).open("r+b") as file:
        file.truncate(2 * MIB)

    assert await repair_all(services) == ["size-differs", "size-differs"]
    assert (await volume_row(services, volume.id))["size"] == 3 * MIB
    assert (await snapshot_row(services, snapshot.id))["size"] == 2 * MIB


async def test_empty_file_is_reported_and_not_used_as_a_size(services: Services, volume: Volume) -> None:
    with (folder(services, volume.id) / "data").open("r+b") as file:
        file.truncate(0)

    assert await findings(services) == [("size-differs", f"volume {volume.id}", False)]
    await run_check(services, repair=True)
    assert (await volume_row(services, volume.id))["size"] == MIB


async def test_repair_raises_a_row_above_a_higher_stored_fence(
    services: Services, volume: Volume, snapshot: Snapshot
) -> None:
    driver = services.backends.get("disk")
    await driver.expand(volume.id, MIB, grant_at(40, 2))
    await driver.seal_snapshot(volume.id, snapshot.id, grant_at(50))

    assert await repair_all(services) == ["fence-behind", "fence-behind"]
    for job in (
        await services.volumes.request_expand(volume.id, Growth(to=2 * MIB)),
        await services.snapshots.request_delete(snapshot.id),
    ):
        assert (await carried_out(services, job)).status == "succeeded"


async def test_repair_adds_a_row_for_unknown_data_and_keeps_its_bytes(services: Services, volume: Volume) -> None:
    snapshot = await a_snapshot(services, volume)
    await services.backends.get("disk").expand(volume.id, MIB, grant_at(4))
    await sql(services, "DELETE FROM snapshots")
    await sql(services, "DELETE FROM volumes")
    (finding,) = await run_check(services)

    assert str(folder(services, volume.id)) in finding.problem
    assert finding.repairable
    assert await repair_all(services) == ["no-row"]
    row = await volume_row(services, volume.id)
    assert (row["name"], row["state"], row["size"], row["version"]) == (f"recovered-{volume.id}", "available", MIB, 5)
    assert read(services, volume.id)[:5] == b"bytes"
    await carried_out(services, await services.volumes.request_expand(volume.id, Growth(to=2 * MIB)))
    await carried_out(services, await services.snapshots.request_restore(snapshot.id))
    await carried_out(services, await services.snapshots.request_delete(snapshot.id))
    assert await sql(services, "SELECT DISTINCT status FROM jobs") == [("succeeded",)]


@pytest.mark.parametrize(
    ("forgotten", "known"),
    [((), {"one"}), (("jobs",), {"one"}), (("jobs", "audit_entries"), {"default"})],
    ids=["by-its-job", "by-its-audit-entry", "by-nothing"],
)
async def test_repair_puts_unknown_data_into_its_project_if_anything_knows_it(
    services: Services, forgotten: tuple[str, ...], known: set[str]
) -> None:
    project = await a_project(services, "one")
    other = await a_stored_volume(services, backend="disk")
    created = await services.volumes.request_create(NewVolume("data", MIB), origin=project.origin)
    assert created.volume_id is not None
    await worked_on(services, created)
    await worked_on(services, await services.snapshots.request_take(created.volume_id, "first", origin=project.origin))
    for table in ("snapshots", "volumes", *forgotten):
        await sql(services, f"DELETE FROM {table}")
    assert await repair_all(services) == ["no-row"] * 2

    in_project = "SELECT p.name FROM {} AS t JOIN projects AS p ON p.id = t.project_id WHERE {} = :id"
    assert {name for (name,) in await sql(services, in_project.format("volumes", "t.id"), id=other.id)} == {"default"}
    for table, column in (("volumes", "t.id"), ("snapshots", "volume_id")):
        rows = await sql(services, in_project.format(table, column), id=created.volume_id)
        assert {name for (name,) in rows} == known


async def worked_on(services: Services, job: Job) -> None:
    """Carry out a job of any project."""
    engine = an_engine(services)
    claim = await engine.claim(job.message)
    assert claim is not None
    await settled(engine, claim.job, await attempted(services, claim.job))


async def test_repair_adds_a_row_for_an_unknown_snapshot(
    services: Services, volume: Volume, snapshot: Snapshot
) -> None:
    await sql(services, "DELETE FROM snapshots")

    assert await findings(services) == [("no-row", f"snapshot {snapshot.id}", True)]
    assert await repair_all(services) == ["no-row"]
    row = await snapshot_row(services, snapshot.id)
    assert (row["name"], row["state"], row["volume_id"]) == (f"recovered-{snapshot.id}", "ready", volume.id)


async def test_snapshots_without_volume_data_are_reported_and_not_changed(
    services: Services, volume: Volume, snapshot: Snapshot
) -> None:
    (folder(services, volume.id) / "data").unlink()
    await sql(services, "DELETE FROM snapshots")
    await sql(services, "DELETE FROM volumes")

    assert await findings(services) == [("no-row", f"volume {volume.id}", False)]
    assert [finding.repaired for finding in await run_check(services, repair=True)] == [False]
    assert (folder(services, volume.id) / "snapshots" / str(snapshot.id)).exists()


async def test_repair_sweeps_drafts_and_trash_of_idle_volumes(
    services: Services, volume: Volume, snapshot: Snapshot
) -> None:
    unknown_id, own_folder = uuid7(), folder(services, volume.id)
    drafts = [
        own_folder / "data.3-0.tmp",
        own_folder / "snapshots" / f"{snapshot.id}.9-0.tmp",
        own_folder / "snapshots" / f"{uuid4()}.1-0.tmp",
        own_folder.parent / str(unknown_id) / "data.1-0.tmp",
    ]
    drafts[3].parent.mkdir()
    for path in drafts:
        path.touch()
    trash = own_folder.parent / ".trash" / f"{unknown_id}.1-0"
    trash.mkdir()

    assert [code for code, _, repairable in await findings(services) if repairable] == ["leftover"] * 5
    assert set(await repair_all(services)) == {"leftover"}
    assert not any(path.exists() for path in (*drafts, drafts[3].parent, trash))
    assert read(services, volume.id)[:5] == b"bytes"


async def test_trash_that_may_be_the_only_copy_of_a_volume_is_not_swept(services: Services, volume: Volume) -> None:
    trash = folder(services, volume.id).parent / ".trash" / f"{volume.id}.5-0"
    folder(services, volume.id).rename(trash)

    assert ("leftover", f"volume {volume.id}", False) in await findings(services)
    await run_check(services, repair=True)
    assert (trash / "data").exists()


async def test_data_of_a_volume_in_error_is_not_checked(services: Services, volume: Volume) -> None:
    await sql(services, "UPDATE volumes SET state = 'error'")
    without_data = await a_volume(services, backend="disk")
    await sql(services, "UPDATE volumes SET state = 'error', size = 77")

    assert await findings(services) == []
    assert without_data.id != volume.id


async def test_unconfigured_backend_is_reported_once(services: Services) -> None:
    for _ in range(3):
        await a_volume(services, backend="elsewhere")

    assert await findings(services) == [("no-backend", "backend 'elsewhere'", False)]


async def test_data_whose_row_names_another_backend_is_reported_and_kept(services: Services, volume: Volume) -> None:
    await sql(services, "UPDATE volumes SET backend = 'elsewhere'")

    found = await run_check(services, repair=True)
    assert [(one.code.value, one.repaired) for one in found] == [("no-backend", False), ("no-row", False)]
    assert read(services, volume.id)[:5] == b"bytes"


async def test_unreadable_volume_is_reported_and_the_others_are_checked(services: Services, volume: Volume) -> None:
    other = await a_stored_volume(services, backend="disk")
    (folder(services, volume.id).parent / ".fences" / str(volume.id)).write_text("?")
    (folder(services, other.id) / "data").unlink()

    assert await findings(services) == [
        ("unreadable", f"volume {volume.id}", False),
        ("data-missing", f"volume {other.id}", False),
    ]


@pytest.mark.parametrize("backend", ["null:", "memory:"])
async def test_backend_without_files_has_no_findings(settings: Settings, backend: str) -> None:
    async with open_services(settings.model_copy(update={"backends": {"memory": backend}}), adopt=True) as services:
        volume = await a_stored_volume(services)
        await a_snapshot(services, volume)

        assert await findings(services) == []


async def test_check_reads_all_pages(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rows", "rows_vs_storage", "jobs"):
        monkeypatch.setattr(f"domain.check.{module}.PAGE", 2)
    volumes = [await a_stored_volume(services, backend="disk") for _ in range(5)]
    for volume in volumes:
        (folder(services, volume.id) / "data").unlink()
        (folder(services, volume.id) / "data.1-0.tmp").touch()
    unknown = [uuid7() for _ in range(5)]
    for volume_id in unknown:
        await services.backends.get("disk").create(volume_id, MIB, grant_at(1))
    found, checked = await report(services)

    assert checked == {"volumes": 5, "snapshots": 0, "volumes on backends": 10}
    assert sum(finding.code == "data-missing" for finding in found) == 5
    assert sum(finding.code == "no-row" for finding in found) == 5
