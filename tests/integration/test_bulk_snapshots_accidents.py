"""Bulk snapshots under faults: lanes that die at any step, the last lane, held storage locks."""

import asyncio
import fcntl
import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row

from domain.bulk.model import Lane
from domain.bulk.operation import ItemWork
from domain.bulk.snapshot import BulkSnapshotRequest
from domain.db.base import DEFAULT_PROJECT
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.context import Fence, Grant, Stopped
from tests.integration.bulk_builders import kill_lanes
from tests.integration.check_builders import findings, grant_at, repair_all, report
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import an_engine, everything, run_out, set_job, sql
from tests.integration.snapshot_builders import carried_out, claimed
from tests.support.bulk import MIB, add_volumes, ended

REQUEST = BulkSnapshotRequest("n", max_concurrent=1)
COUNT = 3


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    settings = settings.model_copy(update={"backends": {"files": f"file:{tmp_path}/volumes"}})
    async with open_services(settings, adopt=True) as services, services.watcher.watching():
        yield services


@pytest.fixture
async def job(services: Services) -> Job:
    """A bulk snapshot of three volumes, delegated to one lane."""
    for volume_id in await add_volumes(services, COUNT, backend="files"):
        await services.backends.get("files").create(volume_id, MIB, grant_at(0))
    return await carried_out(services, await services.bulk.request(REQUEST))


async def claim_lane(services: Services, job: Job, *, epoch: int = 0) -> Lane:
    """Claim the lane of a job, with the given epoch."""
    query = "SELECT id FROM jobs WHERE parent_id = :id AND status = 'queued'"
    ((lane_id,),) = await sql(services, query, id=job.id)
    await set_job(services, lane_id, f"epoch = {epoch}")
    _, lane_job = await claimed(services, await services.jobs.get(lane_id, project_id=DEFAULT_PROJECT))
    return Lane.from_job(lane_job)


async def acquire_all(services: Services, lane: Lane) -> list[ItemWork]:
    return await services.bulk.lane_steps(lane).acquire_volumes(
        await services.bulk.lane_steps(lane).claim_items(10), {}
    )


async def perform(services: Services, lane: Lane, all_work: Sequence[ItemWork]) -> None:
    """Do the storage work without recording it, as a lane that dies then."""
    for work in all_work:
        grant = Grant(lane.job_id, Fence(0, lane.epoch), math.inf)
        assert await services.bulk.lane_steps(lane).operation.work_on(work, grant) is not None


async def snapshots(services: Services) -> Sequence[Row[Any]]:
    return await sql(services, "SELECT id, volume_id, state, job_id, size, version FROM snapshots ORDER BY volume_id")


async def volume_states(services: Services) -> set[tuple[str, UUID | None]]:
    return {(row.state, row.job_id) for row in await sql(services, "SELECT state, job_id FROM volumes")}


def snapshots_on_disk(tmp_path: Path) -> list[str]:
    """Names of the snapshots on disk; drafts have other names."""
    return sorted(path.name for path in (tmp_path / "volumes").glob("*/snapshots/*"))


async def assert_one_each(services: Services, tmp_path: Path) -> None:
    found = await snapshots(services)
    assert len({row.volume_id for row in found}) == len(found) == COUNT
    assert {(row.state, row.job_id, row.size) for row in found} == {("ready", None, MIB)}
    assert snapshots_on_disk(tmp_path) == sorted(str(row.id) for row in found)
    assert await volume_states(services) == {("available", None)}
    assert await findings(services) == []


@pytest.mark.parametrize("done", range(COUNT + 1))
async def test_items_of_a_dead_lane_are_completed_by_the_next(
    services: Services,
    job: Job,
    running_worker: RunningWorker,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    done: int,
) -> None:
    lane = await claim_lane(services, job, epoch=9)
    all_work = await acquire_all(services, lane)
    assert {work.resumed for work in all_work} == {False}
    await perform(services, lane, all_work[:done])  # published with epoch 9; then the lane dies
    before = [row.id for row in await snapshots(services)]
    await kill_lanes(services, job)

    async with running_worker(services.settings):
        job = await ended(services, job)

    assert (job.status, job.succeeded) == ("succeeded", COUNT)
    assert [row.id for row in await snapshots(services)] == before, (
        "the snapshots inserted by the dead lane, and no others"
    )
    assert done == 0 or "fence.raised" not in caplog.text, "the next lane begins above the fences of the dead one"
    await assert_one_each(services, tmp_path)


async def test_rescued_lane_completes_the_snapshots_it_has_inserted(
    services: Services, job: Job, running_worker: RunningWorker, tmp_path: Path
) -> None:
    lane = await claim_lane(services, job)
    all_work = await acquire_all(services, lane)
    await perform(services, lane, all_work[:1])
    await run_out(services, lane.job_id)
    assert await an_engine(services).maintenance.rescue() == 1

    async with running_worker(services.settings):
        job = await ended(services, job)

    assert {work.update.snapshot_id for work in all_work} == {row.id for row in await snapshots(services)}
    await assert_one_each(services, tmp_path)


async def test_last_lane_releases_volumes_and_leaves_possible_snapshots_in_error(
    services: Services, job: Job, running_worker: RunningWorker, tmp_path: Path
) -> None:
    lane = await claim_lane(services, job)
    all_work = await acquire_all(services, lane)
    await perform(services, lane, all_work[:1])
    await kill_lanes(services, job)
    await set_job(services, job.id, "attempt = max_attempts")

    async with running_worker(services.settings):
        job = await ended(services, job)
        items = {
            item.volume_id: item
            for item in await services.bulk.items(job.id, None, after=None, limit=10, project_id=DEFAULT_PROJECT)
        }
        assert (job.status, {item.code for item in items.values()}) == ("failed", {"lanes-lost"})
        assert await volume_states(services) == {("available", None)}
        ((error_id, state),) = [(row.id, row.state) for row in await snapshots(services)]
        assert state == "error"
        assert items[all_work[0].volume_id].snapshot_id == error_id
        assert [items[work.volume_id].snapshot_id for work in all_work[1:]] == [None, None]
        await ended(services, await services.snapshots.request_delete(error_id))
        retry = await ended(services, await services.jobs.retry(job.id))

    assert retry.status == "succeeded"
    await assert_one_each(services, tmp_path)


async def test_volumes_are_released_if_the_last_lane_fails_too(services: Services, job: Job) -> None:
    await acquire_all(services, await claim_lane(services, job))
    await kill_lanes(services, job)
    await set_job(services, job.id, "attempt = max_attempts + 1")

    await services.bulk.assign_lanes()

    job = await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)
    assert (job.status, job.failed) == ("failed", COUNT)
    assert await volume_states(services) == {("available", None)}
    assert {(row.state, row.job_id) for row in await snapshots(services)} == {("error", None)}
    assert await findings(services) == []


async def test_new_lanes_have_fences_above_those_of_dead_ones(services: Services, job: Job) -> None:
    before = {work.volume_id: work.version for work in await acquire_all(services, await claim_lane(services, job))}
    await kill_lanes(services, job)
    await services.bulk.assign_lanes()

    lane = await claim_lane(services, job)
    all_work = await services.bulk.lane_steps(lane).acquire_volumes(
        await services.bulk.lane_steps(lane).reclaim_items(), {}
    )

    assert {work.volume_id: work.version for work in all_work} == {one: version + 1 for one, version in before.items()}
    assert {work.resumed for work in all_work} == {True}


async def test_snapshot_with_a_held_storage_lock_stays_claimed_until_unlocked(
    services: Services, job: Job, running_worker: RunningWorker, tmp_path: Path
) -> None:
    lane = await claim_lane(services, job)
    held = (await acquire_all(services, lane))[0].update.snapshot_id
    await run_out(services, lane.job_id)
    assert await an_engine(services).maintenance.rescue() == 1
    fence = tmp_path / "volumes" / ".fences" / str(held)
    fence.touch()
    with fence.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with running_worker(services.settings):
            async with asyncio.timeout(60):
                while (await services.jobs.get(lane.job_id, project_id=DEFAULT_PROJECT)).epoch < 3:
                    await asyncio.sleep(0.05)
            assert ("snapshotting", job.id) in await volume_states(services)
            fcntl.flock(lock, fcntl.LOCK_UN)
            job = await ended(services, job)

    assert (job.status, job.succeeded) == ("succeeded", COUNT)
    await assert_one_each(services, tmp_path)


async def test_rescued_lane_changes_nothing(services: Services, job: Job) -> None:
    lane = await claim_lane(services, job)
    chunks = services.bulk.lane_steps(lane)
    items = await chunks.claim_items(2)
    all_work = await chunks.acquire_volumes(items[:1], {})
    await run_out(services, lane.job_id)
    assert await an_engine(services).maintenance.rescue() == 1
    before = [await everything(services), await snapshots(services)]

    for late in (
        chunks.acquire_volumes(items, {}),
        chunks.record([chunks.operation.skip(work) for work in all_work]),
    ):
        with pytest.raises(Stopped):
            await late

    assert [await everything(services), await snapshots(services)] == before


async def test_recording_a_chunk_is_idempotent(services: Services, job: Job) -> None:
    lane = await claim_lane(services, job)
    all_work = await acquire_all(services, lane)
    chunks, grant = services.bulk.lane_steps(lane), Grant(lane.job_id, Fence(0, lane.epoch), math.inf)
    results = [result for work in all_work if (result := await chunks.operation.work_on(work, grant)) is not None]
    await chunks.record(results)
    job = await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)
    before = [await snapshots(services), job.succeeded]

    await chunks.record(results)

    assert [
        await snapshots(services),
        (await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)).succeeded,
    ] == before
    assert job.status == "succeeded"


async def test_running_bulk_snapshot_has_no_findings(services: Services, job: Job) -> None:
    assert await findings(services) == []
    lane = await claim_lane(services, job)
    all_work = await acquire_all(services, lane)
    assert await findings(services) == []
    await perform(services, lane, all_work[:2])
    assert await findings(services) == []
    assert (await report(services))[1]["ledgers"] == 1


async def test_rows_held_by_an_ended_bulk_snapshot_are_found_and_released(services: Services, job: Job) -> None:
    lane = await claim_lane(services, job)
    await perform(services, lane, (await acquire_all(services, lane))[:1])
    await kill_lanes(services, job)
    await set_job(services, job.id, "status = 'failed', finished_at = now()")

    assert sorted(await repair_all(services)) == ["items-unfinished", *["no-job"] * 2 * COUNT]
    assert await volume_states(services) == {("available", None)}
    assert {(row.state, row.job_id) for row in await snapshots(services)} == {("error", None)}


async def test_snapshot_version_behind_the_stored_fence_is_repaired(
    services: Services, job: Job, running_worker: RunningWorker, tmp_path: Path
) -> None:
    lane = await claim_lane(services, job)
    work = (await acquire_all(services, lane))[0]
    assert work.update.snapshot_id is not None
    await services.backends.get("files").take_snapshot(work.volume_id, work.update.snapshot_id, grant_at(7, 7))

    assert await repair_all(services) == ["fence-behind"]
    await run_out(services, lane.job_id)
    assert await an_engine(services).maintenance.rescue() == 1
    async with running_worker(services.settings):
        job = await ended(services, job)
    assert (job.status, job.succeeded) == ("succeeded", COUNT)
    await assert_one_each(services, tmp_path)


async def test_fence_of_a_volume_is_checked_against_the_volumes_own_version(services: Services, job: Job) -> None:
    work = (await acquire_all(services, await claim_lane(services, job, epoch=3)))[0]
    version = (await services.volumes.get(work.volume_id, project_id=DEFAULT_PROJECT)).version
    await services.backends.get("files").expand(
        work.volume_id, MIB, grant_at(version)
    )  # as after a restore of an older database

    assert await findings(services) == [("fence-behind", f"volume {work.volume_id}", True)]


async def test_progress_of_one_item_is_not_that_of_the_lane(services: Services, job: Job) -> None:
    lane = await claim_lane(services, job)
    grant = Grant(lane.job_id, Fence(0, lane.epoch), math.inf)
    for work in await acquire_all(services, lane):
        assert await services.bulk.lane_steps(lane).operation.work_on(work, grant) is not None

    assert grant.copied is None
