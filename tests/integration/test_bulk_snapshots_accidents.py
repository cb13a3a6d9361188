"""What a bulk snapshot lives through: lanes that die at any step, a last lane, a lock that somebody holds."""

import asyncio
import fcntl
import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Row

from domain.bulk.ledger import Lane
from domain.bulk.operation import ItemWork
from domain.bulk.snapshot.request import BulkSnapshotRequest
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.context import Fence, Grant, Stopped
from tests.integration.bulk_builders import kill_lanes
from tests.integration.check_builders import as_repaired, leave, told
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import an_engine, everything, run_out, set_job, sql
from tests.integration.snapshot_builders import carried_out, claimed
from tests.support.bulk import MIB, add_volumes, ended

WANTED = BulkSnapshotRequest("n", max_concurrent=1)
COUNT = 3


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    settings = settings.model_copy(update={"backends": {"files": f"file:{tmp_path}/volumes"}})
    async with open_services(settings) as services, services.watcher.watching():
        yield services


@pytest.fixture
async def job(services: Services) -> Job:
    """A bulk snapshot of three volumes that was handed over to one lane."""
    for volume_id in await add_volumes(services, COUNT, backend="files"):
        await services.backends.get("files").create(volume_id, MIB, leave(0))
    return await carried_out(services, await services.bulk_snapshots.request_snapshots(WANTED))


async def its_lane(services: Services, job: Job, *, epoch: int = 0) -> Lane:
    """The lane of a job, rung ``rings`` times, at work now."""
    query = "SELECT id FROM jobs WHERE parent_id = :id AND status = 'queued'"
    ((lane_id,),) = await sql(services, query, id=job.id)
    await set_job(services, lane_id, f"epoch = {epoch}")
    _, order = await claimed(services, await services.jobs.get(lane_id))
    return Lane.from_job(order)


async def taken(services: Services, lane: Lane) -> list[ItemWork]:
    return await services.chunks.acquire(lane, await services.chunks.claim(lane, 10), {})


async def do(services: Services, lane: Lane, tasks: Sequence[ItemWork]) -> None:
    """Do the storage work, and die before it is recorded."""
    for task in tasks:
        grant = Grant(lane.lane_id, Fence(0, lane.epoch), math.inf)
        assert await services.chunks.perform(lane, task, grant) is not None


async def snapshots(services: Services) -> Sequence[Row[Any]]:
    return await sql(services, "SELECT id, volume_id, state, job_id, size, version FROM snapshots ORDER BY volume_id")


async def volume_states(services: Services) -> set[tuple[str, UUID | None]]:
    return {(row.state, row.job_id) for row in await sql(services, "SELECT state, job_id FROM volumes")}


def kept(tmp_path: Path) -> list[str]:
    """Snapshots on the disk; drafts have other names."""
    return sorted(path.name for path in (tmp_path / "volumes").glob("*/snapshots/*"))


async def assert_one_each(services: Services, tmp_path: Path) -> None:
    found = await snapshots(services)
    assert len({row.volume_id for row in found}) == len(found) == COUNT
    assert {(row.state, row.job_id, row.size) for row in found} == {("ready", None, MIB)}
    assert kept(tmp_path) == sorted(str(row.id) for row in found)
    assert await volume_states(services) == {("available", None)}
    assert await told(services) == []


@pytest.mark.parametrize("done", range(COUNT + 1))
async def test_what_dead_lanes_had_in_their_hands_is_brought_to_an_end_by_the_next(
    services: Services, job: Job, running_worker: RunningWorker, tmp_path: Path, done: int
) -> None:
    lane = await its_lane(services, job, epoch=9)
    tasks = await taken(services, lane)
    assert {task.resumed for task in tasks} == {False}
    await do(services, lane, tasks[:done])  # on the disk, with ring 9, and then it dies
    before = [row.id for row in await snapshots(services)]
    await kill_lanes(services, job)

    async with running_worker(services.settings):
        job = await ended(services, job)

    assert (job.status, job.succeeded) == ("succeeded", COUNT)
    assert [row.id for row in await snapshots(services)] == before, "those that were begun, and no others"
    await assert_one_each(services, tmp_path)


async def test_a_lane_that_was_interrupted_goes_on_with_the_snapshots_it_has_named(
    services: Services, job: Job, running_worker: RunningWorker, tmp_path: Path
) -> None:
    lane = await its_lane(services, job)
    tasks = await taken(services, lane)
    await do(services, lane, tasks[:1])
    await run_out(services, lane.lane_id)
    assert await an_engine(services).rescue() == 1

    async with running_worker(services.settings):
        job = await ended(services, job)

    assert {task.entry.snapshot_id for task in tasks} == {row.id for row in await snapshots(services)}
    await assert_one_each(services, tmp_path)


async def test_the_last_lane_lets_volumes_go_and_leaves_what_may_be_there_as_an_error(
    services: Services, job: Job, running_worker: RunningWorker, tmp_path: Path
) -> None:
    lane = await its_lane(services, job)
    tasks = await taken(services, lane)
    await do(services, lane, tasks[:1])
    await kill_lanes(services, job)
    await set_job(services, job.id, "attempt = max_attempts")

    async with running_worker(services.settings):
        job = await ended(services, job)
        items = {item.volume_id: item for item in await services.bulk.items(job.id, None, after=None, limit=10)}
        assert (job.status, {item.code for item in items.values()}) == ("failed", {"lanes-lost"})
        assert await volume_states(services) == {("available", None)}
        ((error_id, state),) = [(row.id, row.state) for row in await snapshots(services)]
        assert state == "error"
        assert items[tasks[0].volume_id].snapshot_id == error_id
        assert [items[task.volume_id].snapshot_id for task in tasks[1:]] == [None, None]
        await ended(services, await services.snapshots.request_delete(error_id))
        retry = await ended(services, await services.jobs.retry(job.id))

    assert retry.status == "succeeded"
    await assert_one_each(services, tmp_path)


async def test_when_not_even_the_last_lane_comes_through_nothing_is_stuck(services: Services, job: Job) -> None:
    await taken(services, await its_lane(services, job))
    await kill_lanes(services, job)
    await set_job(services, job.id, "attempt = max_attempts + 1")

    await services.bulk.assign_lanes()

    job = await services.jobs.get(job.id)
    assert (job.status, job.failed) == ("failed", COUNT)
    assert await volume_states(services) == {("available", None)}
    assert {(row.state, row.job_id) for row in await snapshots(services)} == {("error", None)}
    assert await told(services) == []


async def test_new_lanes_have_fences_above_those_of_dead_ones(services: Services, job: Job) -> None:
    before = {task.volume_id: task.version for task in await taken(services, await its_lane(services, job))}
    await kill_lanes(services, job)
    await services.bulk.assign_lanes()

    lane = await its_lane(services, job)
    tasks = await services.chunks.acquire(lane, await services.chunks.claim_leftovers(lane), {})

    assert {task.volume_id: task.version for task in tasks} == {one: version + 1 for one, version in before.items()}
    assert {task.resumed for task in tasks} == {True}


async def test_a_snapshot_whose_lock_somebody_holds_stays_in_the_lanes_hands_until_it_is_free(
    services: Services, job: Job, running_worker: RunningWorker, tmp_path: Path
) -> None:
    lane = await its_lane(services, job)
    held = (await taken(services, lane))[0].entry.snapshot_id
    await run_out(services, lane.lane_id)
    assert await an_engine(services).rescue() == 1
    fence = tmp_path / "volumes" / ".fences" / str(held)
    fence.touch()
    with fence.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with running_worker(services.settings):
            async with asyncio.timeout(60):
                while (await services.jobs.get(lane.lane_id)).epoch < 3:
                    await asyncio.sleep(0.05)
            assert ("snapshotting", job.id) in await volume_states(services)
            fcntl.flock(lock, fcntl.LOCK_UN)
            job = await ended(services, job)

    assert (job.status, job.succeeded) == ("succeeded", COUNT)
    await assert_one_each(services, tmp_path)


async def test_a_lane_that_was_rescued_changes_nothing_any_more(services: Services, job: Job) -> None:
    lane, chunks = await its_lane(services, job), services.chunks
    items = await chunks.claim(lane, 2)
    tasks = await chunks.acquire(lane, items[:1], {})
    await run_out(services, lane.lane_id)
    assert await an_engine(services).rescue() == 1
    before = [await everything(services), await snapshots(services)]

    for late in (
        chunks.acquire(lane, items, {}),
        chunks.record(lane, [chunks.skip(task) for task in tasks]),
    ):
        with pytest.raises(Stopped):
            await late

    assert [await everything(services), await snapshots(services)] == before


async def test_a_chunk_that_is_recorded_twice_is_recorded_once(services: Services, job: Job) -> None:
    lane = await its_lane(services, job)
    tasks = await taken(services, lane)
    grant = Grant(lane.lane_id, Fence(0, lane.epoch), math.inf)
    results = [result for task in tasks if (result := await services.chunks.perform(lane, task, grant)) is not None]
    await services.chunks.record(lane, results)
    job = await services.jobs.get(job.id)
    before = [await snapshots(services), job.succeeded]

    await services.chunks.record(lane, results)

    assert [await snapshots(services), (await services.jobs.get(job.id)).succeeded] == before
    assert job.status == "succeeded"


async def test_a_bulk_snapshot_at_work_is_no_finding(services: Services, job: Job) -> None:
    assert await told(services) == []
    lane = await its_lane(services, job)
    tasks = await taken(services, lane)
    assert await told(services) == []
    await do(services, lane, tasks[:2])
    assert await told(services) == []
    assert (await services.check().report()).looked_at["ledgers"] == 1


async def test_what_an_ended_bulk_snapshot_still_has_is_stranded_and_brought_to_rest(
    services: Services, job: Job
) -> None:
    lane = await its_lane(services, job)
    await do(services, lane, (await taken(services, lane))[:1])
    await kill_lanes(services, job)
    await set_job(services, job.id, "status = 'failed', finished_at = now()")

    assert sorted(await as_repaired(services)) == ["items-unfinished", *["no-job"] * 2 * COUNT]
    assert await volume_states(services) == {("available", None)}
    assert {(row.state, row.job_id) for row in await snapshots(services)} == {("error", None)}


async def test_snapshots_of_a_lane_that_would_be_refused_are_lifted_above_the_fence(
    services: Services, job: Job, running_worker: RunningWorker, tmp_path: Path
) -> None:
    lane = await its_lane(services, job)
    task = (await taken(services, lane))[0]
    assert task.entry.snapshot_id is not None
    await services.backends.get("files").take_snapshot(task.volume_id, task.entry.snapshot_id, leave(7, 7))

    assert await as_repaired(services) == ["fence-behind"]
    await run_out(services, lane.lane_id)
    assert await an_engine(services).rescue() == 1
    async with running_worker(services.settings):
        job = await ended(services, job)
    assert (job.status, job.succeeded) == ("succeeded", COUNT)
    await assert_one_each(services, tmp_path)


async def test_a_volume_is_only_kept_from_others_so_its_fence_is_not_the_lanes(services: Services, job: Job) -> None:
    task = (await taken(services, await its_lane(services, job, epoch=3)))[0]
    version = (await services.volumes.get(task.volume_id)).version
    await services.backends.get("files").expand(task.volume_id, MIB, leave(version))  # by some other history

    assert await told(services) == [("fence-behind", f"volume {task.volume_id}", True)]


async def test_how_far_one_of_many_copies_is_says_nothing_of_the_lane(services: Services, job: Job) -> None:
    lane = await its_lane(services, job)
    grant = Grant(lane.lane_id, Fence(0, lane.epoch), math.inf)
    for task in await taken(services, lane):
        assert await services.chunks.perform(lane, task, grant) is not None

    assert grant.copied is None
