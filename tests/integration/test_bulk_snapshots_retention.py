"""Retention of scheduled snapshots: a schedule deletes only its own, only after a new one, and only expired ones."""

import math
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.bulk.model import Lane
from domain.bulk.operation import Result
from domain.bulk.snapshot import BulkSnapshotRequest
from domain.db.base import DEFAULT_PROJECT
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.snapshots import repository
from domain.snapshots.retention import RetentionRule
from domain.storage.context import Fence, Grant
from tests.integration.check_builders import findings, grant_at
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import sql, until
from tests.integration.snapshot_builders import carried_out, claimed
from tests.support.bulk import MIB, add_volumes, ended

NIGHTLY, WEEKLY = uuid4(), uuid4()
FIRST_NIGHT = datetime(2026, 1, 1, 2, tzinfo=UTC)


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    backends = {"files": f"file:{tmp_path}/volumes"}
    settings = settings.model_copy(update={"backends": backends})
    async with open_services(settings, adopt=True) as services, services.watcher.watching():
        yield services


async def stored_volumes(services: Services, count: int) -> list[UUID]:
    volumes = await add_volumes(services, count, backend="files")
    for volume_id in volumes:
        await services.backends.get("files").create(volume_id, MIB, grant_at(0))
    return volumes


async def a_run(services: Services, night: int, keep: RetentionRule, schedule_id: UUID = NIGHTLY) -> Job:
    """Insert the job of a scheduled run, which nobody has dispatched yet."""
    columns = {"schedule_id": schedule_id, "scheduled_for": FIRST_NIGHT + timedelta(days=night)}
    async with services.database.transaction() as session:
        request = BulkSnapshotRequest("nightly", keep=keep)
        return await services.bulk.add(session, request, project_id=DEFAULT_PROJECT, **columns)


async def no_live_jobs(services: Services) -> bool:
    return await sql(services, "SELECT id FROM jobs WHERE status IN ('queued', 'running')") == []


async def run(services: Services, night: int, keep: RetentionRule, schedule_id: UUID = NIGHTLY) -> Job:
    """Insert the job of a scheduled run, and wait until it and the delete jobs that it creates have ended."""
    job = await a_run(services, night, keep, schedule_id)
    await services.queue.dispatch([job.message])  # maintenance would send it only half a lease later
    job = await ended(services, job)
    await until(partial(no_live_jobs, services))
    return job


async def names(services: Services, volume_id: UUID) -> list[str]:
    """Return the names of the ready snapshots of a volume, without the ends of their schedules' ids."""
    query = "SELECT name FROM snapshots WHERE volume_id = :id AND state = 'ready' ORDER BY created_at"
    return [re.sub("-[0-9a-f]{12}$", "", row.name) for row in await sql(services, query, id=volume_id)]


async def grow_old(services: Services, days: int) -> None:
    await sql(services, f"UPDATE snapshots SET created_at = created_at - interval '{days} days'")


async def test_last_three_of_five_runs_and_manual_snapshots_are_kept(
    services: Services, running_worker: RunningWorker
) -> None:
    volumes = await stored_volumes(services, 6)
    async with running_worker(services.settings):
        for volume_id in volumes:
            await ended(services, await services.snapshots.request_take(volume_id, "by-hand"))
        runs = [await run(services, night, RetentionRule(last=3)) for night in range(5)]

    assert [job.status for job in runs] == ["succeeded"] * 5
    kept = [f"nightly-2026010{night}T020000000Z" for night in (3, 4, 5)]
    assert {volume_id: await names(services, volume_id) for volume_id in volumes} == {
        volume_id: ["by-hand", *kept] for volume_id in volumes
    }
    assert len(await sql(services, "SELECT id FROM snapshots")) == 6 * 4
    deleted = await sql(services, "SELECT status, created_by FROM jobs WHERE kind = 'snapshot.delete'")
    assert [(row.status, row.created_by) for row in deleted] == [("succeeded", None)] * 6 * 2
    assert await findings(services) == []


async def test_snapshots_of_other_origins_are_not_deleted(services: Services, running_worker: RunningWorker) -> None:
    (volume_id,) = await stored_volumes(services, 1)
    async with running_worker(services.settings):
        await run(services, 0, RetentionRule(last=1), WEEKLY)
        await ended(services, await services.bulk.request(BulkSnapshotRequest("plain")))
        await run(services, 1, RetentionRule(last=1))
        await run(services, 2, RetentionRule(last=1))

    weekly, plain, nightly = await names(services, volume_id)
    assert (weekly, nightly) == ("nightly-20260101T020000000Z", "nightly-20260103T020000000Z")
    assert plain.startswith("plain-")


async def test_all_snapshots_are_kept_without_a_rule(services: Services, running_worker: RunningWorker) -> None:
    (volume_id,) = await stored_volumes(services, 1)
    async with running_worker(services.settings):
        for night in range(3):
            await run(services, night, RetentionRule())

    assert len(await names(services, volume_id)) == 3


async def test_old_snapshots_expire_except_those_kept_by_a_limit_and_the_newest(
    services: Services, running_worker: RunningWorker
) -> None:
    (volume_id,) = await stored_volumes(services, 1)
    async with running_worker(services.settings):
        for night in range(3):
            await run(services, night, RetentionRule(days=5))
            await grow_old(services, 3)
        assert len(await names(services, volume_id)) == 2, "the one of nine days ago has expired"

        await grow_old(services, 10)
        await run(services, 3, RetentionRule(last=2, days=5))
        assert len(await names(services, volume_id)) == 2, "old, but one of the last two"
        await grow_old(services, 10)
        await run(services, 4, RetentionRule(days=5))

    assert await names(services, volume_id) == ["nightly-20260105T020000000Z"]


async def test_expiry_is_limited_per_run_and_starts_with_the_oldest(
    services: Services, running_worker: RunningWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "_MAX_EXPIRED", 2)
    (volume_id,) = await stored_volumes(services, 1)
    async with running_worker(services.settings):
        for night in range(4):
            await run(services, night, RetentionRule())
        remaining = []
        for night in range(4, 7):
            await run(services, night, RetentionRule(last=1))
            remaining.append([name[14:16] for name in await names(services, volume_id)])

    assert remaining == [["03", "04", "05"], ["05", "06"], ["07"]]


async def test_snapshot_in_use_is_kept_until_a_later_run(services: Services, running_worker: RunningWorker) -> None:
    (volume_id,) = await stored_volumes(services, 1)
    async with running_worker(services.settings):
        await run(services, 0, RetentionRule(last=1))
        await sql(services, "UPDATE snapshots SET state = 'restoring', job_id = id")
        await run(services, 1, RetentionRule(last=1))
        assert len(await sql(services, "SELECT id FROM snapshots")) == 2
        await sql(services, "UPDATE snapshots SET state = 'ready', job_id = NULL")
        await run(services, 2, RetentionRule(last=1))

    assert await names(services, volume_id) == ["nightly-20260103T020000000Z"]


async def test_volume_without_a_new_snapshot_keeps_its_old_ones(
    services: Services, running_worker: RunningWorker
) -> None:
    good, bad = await stored_volumes(services, 2)
    async with running_worker(services.settings):
        for night in range(2):
            await run(services, night, RetentionRule())
        Path(str(services.volumes.path(await services.volumes.get(bad, project_id=DEFAULT_PROJECT)))).unlink()
        job = await run(services, 2, RetentionRule(last=1))

    assert (job.status, job.succeeded, job.failed) == ("partial", 1, 1)
    assert await names(services, good) == ["nightly-20260103T020000000Z"]
    assert await names(services, bad) == ["nightly-20260101T020000000Z", "nightly-20260102T020000000Z"]


async def test_newer_snapshot_takes_away_those_that_failed(services: Services, running_worker: RunningWorker) -> None:
    recovered, failing = await stored_volumes(services, 2)
    async with running_worker(services.settings):
        for night in range(2):
            await run(services, night, RetentionRule(last=1))
        await sql(services, "UPDATE snapshots SET state = 'error'")  # as if something had been left behind each time
        Path(str(services.volumes.path(await services.volumes.get(failing, project_id=DEFAULT_PROJECT)))).unlink()
        await run(services, 2, RetentionRule(last=1))

    left = await sql(services, "SELECT volume_id, state FROM snapshots ORDER BY state")
    assert [(row.volume_id, row.state) for row in left] == [(failing, "error"), (recovered, "ready")]


async def test_snapshots_of_a_retry_belong_to_the_schedule(services: Services, running_worker: RunningWorker) -> None:
    (volume_id,) = await stored_volumes(services, 1)
    async with running_worker(services.settings):
        await run(services, 0, RetentionRule(last=1))
        job = await a_run(services, 1, RetentionRule(last=1))
        job = await services.jobs.cancel(job.id)
        retry = await ended(services, await services.jobs.retry(job.id))
        assert (retry.status, retry.schedule_id) == ("succeeded", None)
        await run(services, 2, RetentionRule(last=1))

    assert await names(services, volume_id) == ["nightly-20260103T020000000Z"]


async def performed_but_not_recorded(services: Services, job: Job) -> tuple[Lane, list[Result]]:
    """Claim the lane of a job and take all snapshots; return the lane and the results that it has not recorded."""
    job = await carried_out(services, job)
    lane_id = (await sql(services, "SELECT id FROM jobs WHERE parent_id = :id LIMIT 1", id=job.id))[0].id
    _, lane_job = await claimed(services, await services.jobs.get(lane_id, project_id=DEFAULT_PROJECT))
    lane = Lane.from_job(lane_job)
    chunks = services.bulk.lane_steps(lane)
    all_work = await chunks.acquire_volumes(await chunks.claim_items(10), {})
    grant = Grant(lane.job_id, Fence(0, lane.epoch), math.inf)
    return lane, [result for work in all_work if (result := await chunks.operation.work_on(work, grant)) is not None]


async def test_newest_snapshot_is_kept_whatever_its_age(services: Services) -> None:
    (volume_id,) = await stored_volumes(services, 1)
    lane, results = await performed_but_not_recorded(services, await a_run(services, 0, RetentionRule(days=1)))
    await grow_old(services, 2)

    await services.bulk.lane_steps(lane).record(results)

    assert len(await names(services, volume_id)) == 1


async def test_recording_twice_deletes_expired_snapshots_once(
    services: Services, running_worker: RunningWorker
) -> None:
    volumes = await stored_volumes(services, 3)
    async with running_worker(services.settings):
        await run(services, 0, RetentionRule(last=1))
    lane, results = await performed_but_not_recorded(services, await a_run(services, 1, RetentionRule(last=1)))

    for _ in range(2):
        await services.bulk.lane_steps(lane).record(results)

    deletes = await sql(services, "SELECT snapshot_id, dispatched_at FROM jobs WHERE kind = 'snapshot.delete'")
    assert len({row.snapshot_id for row in deletes}) == len(deletes) == len(volumes)
    assert {row.dispatched_at for row in deletes} == {None}
    async with running_worker(services.settings):
        await until(partial(no_live_jobs, services))
    assert [await names(services, volume_id) for volume_id in volumes] == [["nightly-20260102T020000000Z"]] * 3
