"""Sizes, fences and kinds of files that cannot be right: they end the work on one volume, at once, and no other's."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from domain.bulk.model import ItemStatus, Lane
from domain.bulk.operation import Result
from domain.bulk.snapshot import BulkSnapshotRequest
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.driver import Capacity
from domain.storage.file.driver import FileDriver
from domain.volumes.model import Growth
from tests.integration.bulk_builders import a_claimed_lane, an_engine, items
from tests.integration.check_builders import findings, folder, grant_at, on_disk, run_check
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, sql
from tests.integration.job_builders import ended as single_ended
from tests.integration.snapshot_builders import a_stored_volume, path
from tests.support.bulk import add_volumes, ended


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    async with open_services(on_disk(settings, tmp_path), adopt=True) as services, services.watcher.watching():
        yield services


async def stored(services: Services, count: int) -> list[UUID]:
    volumes = await add_volumes(services, count, backend="disk")
    for volume_id in volumes:
        await services.backends.get("disk").create(volume_id, MIB, grant_at(0))
    return volumes


def failure(job: Job) -> tuple[str, int, str]:
    return job.status, job.attempt, (job.error or {})["code"]


async def test_data_file_of_nothing_fails_alone_in_a_bulk_snapshot(
    services: Services, running_worker: RunningWorker
) -> None:
    volumes = await stored(services, 6)
    os.truncate(path(services, volumes[2]), 0)
    async with running_worker(services.settings):
        job = await ended(services, await services.bulk.request(BulkSnapshotRequest("n", max_concurrent=2)))

    found = await items(services, job)
    failed = {volume_id: item.code for volume_id, item in found.items() if item.status is ItemStatus.FAILED}
    assert (job.status, job.succeeded, failed) == ("partial", 5, {volumes[2]: "size-impossible"})
    states = await sql(services, "SELECT volume_id, state FROM snapshots WHERE state <> 'ready'")
    assert states == [(volumes[2], "error")]
    assert await sql(services, "SELECT DISTINCT state FROM volumes") == [("available",)]


async def test_result_that_cannot_be_recorded_fails_alone(services: Services) -> None:
    volumes = await stored(services, 3)
    job, claim = await a_claimed_lane(services, an_engine(services))
    steps = services.bulk.lane_steps(Lane.from_job(claim.job))
    work = (await steps.claim_next(10)).work
    done = {one.volume_id: one.ending(ItemStatus.SUCCEEDED, steps.operation.success_code) for one in work}

    await steps.record([Result(done[id_], size) for id_, size in zip(volumes, (2 * MIB, 0, 2 * MIB), strict=True)])

    assert {id_: (item.status, item.code) for id_, item in (await items(services, job)).items()} == {
        volumes[0]: ("succeeded", "expanded"),
        volumes[1]: ("failed", "internal"),
        volumes[2]: ("succeeded", "expanded"),
    }
    rows = await sql(services, "SELECT state, size FROM volumes ORDER BY id")
    assert rows == [("available", 2 * MIB), ("available", MIB), ("available", 2 * MIB)]


async def test_snapshot_of_a_data_file_of_nothing_fails_at_once(
    services: Services, running_worker: RunningWorker
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    os.truncate(path(services, volume.id), 0)
    async with running_worker(services.settings):
        job = await single_ended(services, (await services.snapshots.request_take(volume.id, "of nothing")).id)

    assert failure(job) == ("failed", 1, "size-impossible")


async def test_fifo_and_link_in_place_of_the_data_fail_at_once_and_the_volume_can_be_deleted(
    services: Services, running_worker: RunningWorker, tmp_path: Path
) -> None:
    fifo, link = [await a_stored_volume(services, backend="disk") for _ in range(2)]
    for volume in (fifo, link):
        path(services, volume.id).unlink()
    os.mkfifo(path(services, fifo.id))
    (tmp_path / "elsewhere").write_bytes(b"not ours")
    path(services, link.id).symlink_to(tmp_path / "elsewhere")
    async with running_worker(services.settings):
        for volume in (fifo, link):
            job = await services.volumes.request_expand(volume.id, Growth(by=MIB))
            assert failure(await single_ended(services, job.id)) == ("failed", 1, "storage-denied")
            job = await services.snapshots.request_take(volume.id, f"of {volume.name}")
            assert failure(await single_ended(services, job.id)) == ("failed", 1, "storage-denied")
            await sql(services, "DELETE FROM snapshots")
            deleted = await single_ended(services, (await services.volumes.request_delete(volume.id)).id)
            assert deleted.status == "succeeded"

    assert (tmp_path / "elsewhere").read_bytes() == b"not ours"


async def test_absurd_fence_fails_the_volumes_job_at_once(
    services: Services, running_worker: RunningWorker, tmp_path: Path
) -> None:
    volume = await a_stored_volume(services, backend="disk")
    (folder(services, volume.id).parent / ".fences" / str(volume.id)).write_text(f"{2**60:020d} {1:020d}\n")
    async with running_worker(services.settings):
        job = await single_ended(services, (await services.volumes.request_expand(volume.id, Growth(by=MIB))).id)

    assert failure(job) == ("failed", 1, "storage-refused")
    assert await sql(services, "SELECT state FROM volumes") == [("available",)]


@pytest.mark.parametrize("capacity", [Capacity(2**63, 0), Capacity(None, -1), Capacity(None, 0, 1.5)])  # type: ignore[arg-type]
async def test_impossible_capacity_is_unknown_and_the_backend_is_served(
    services: Services, monkeypatch: pytest.MonkeyPatch, capacity: Capacity
) -> None:
    async def reported(_: FileDriver) -> Capacity:
        return capacity

    monkeypatch.setattr(FileDriver, "capacity", reported)
    await services.registry.announce(UUID(int=1), "here")

    rows = await sql(services, "SELECT used, measured_at FROM backends JOIN backend_servers ON backend = name")
    assert rows == [(None, None)]


async def test_check_adopts_no_link(services: Services, tmp_path: Path) -> None:
    volumes = await stored(services, 3)
    await sql(services, "DELETE FROM volumes")
    (tmp_path / "elsewhere").write_bytes(b"not ours")
    path(services, volumes[0]).unlink()
    path(services, volumes[0]).symlink_to(tmp_path / "elsewhere")
    folder(services, volumes[1]).rename(tmp_path / "moved")
    folder(services, volumes[1]).symlink_to(tmp_path / "moved")

    found = await run_check(services, repair=True)

    assert sorted((one.code.value, one.subject, one.repaired) for one in found) == [
        ("no-row", f"volume {volumes[2]}", True),
        ("unreadable", f"volume {volumes[0]}", False),
        ("unreadable", f"volume {volumes[1]}", False),
    ]
    assert await sql(services, "SELECT id FROM volumes") == [(volumes[2],)]
    assert {code for code, _, _ in await findings(services)} == {"unreadable"}


async def test_row_without_a_job_comes_to_rest_although_its_data_is_of_no_size(services: Services) -> None:
    volume = await a_stored_volume(services, backend="disk")
    os.truncate(path(services, volume.id), 0)
    await sql(services, "UPDATE volumes SET state = 'expanding', job_id = id")

    await run_check(services, repair=True)

    assert await sql(services, "SELECT state, job_id FROM volumes") == [("available", None)]
    assert {code for code, _, _ in await findings(services)} == {"size-differs"}
