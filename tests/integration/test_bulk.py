"""Bulk expansion on one worker: every volume has a result in the ledger, and the counters add up."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.bulk.model import Item, ItemStatus
from domain.bulk.requests import Selection
from domain.db.base import DEFAULT_PROJECT
from domain.errors import Invalid
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.acceptance import journal
from tests.integration.bulk_builders import fail_for, items
from tests.integration.conftest import RunningWorker
from tests.support.bulk import MIB, add_volumes, adds_up, ended, most_at_once

BY_ONE = GrowthPolicy(by=MIB)


@pytest.fixture
async def services(bulk_settings: Settings) -> AsyncIterator[Services]:
    async with open_services(bulk_settings, adopt=True) as services, services.watcher.watching():
        yield services


async def sizes(services: Services) -> Counter[tuple[str, int]]:
    async with services.database.transaction() as session:
        rows = await session.execute(text("SELECT state, size FROM volumes"))
        return Counter((state, size) for state, size in rows)


async def reached_concurrency(number: int, path: Path) -> bool:
    return most_at_once(journal.read(path)) >= number


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_failed_items_of_a_thousand_are_retried_alone_and_concurrency_is_limited(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    volumes = await add_volumes(services, 1000, backend="null")
    bad = sorted(volumes[::400])
    fail_for(tmp_path, "expand", bad)
    (tmp_path / "gate").touch()
    async with running_worker(bulk_settings):
        job = await services.bulk.request(BulkExpandRequest(BY_ONE, max_concurrent=7))
        await until(partial(reached_concurrency, 7, tmp_path / "journal"))
        (tmp_path / "gate").unlink()
        job = await ended(services, job)

        assert (job.status, job.succeeded, job.failed, job.skipped, job.total) == ("partial", 997, 3, 0, 1000)
        assert job.error == {"code": "items-failed", "detail": "3 of 1000 failed; the job's items say which and why."}
        failed = await items(services, job, ItemStatus.FAILED)
        assert sorted(failed) == bad
        assert {item.code for item in failed.values()} == {"storage-full"}
        assert await sizes(services) == {("available", 2 * MIB): 997, ("available", MIB): 3}
        assert most_at_once(journal.read(tmp_path / "journal")) == 7

        fail_for(tmp_path, "expand", [])
        retry = await ended(services, await services.jobs.retry(job.id))

        assert (retry.status, retry.succeeded, retry.total, retry.retry_of) == ("succeeded", 3, 3, job.id)
        assert sorted(await items(services, retry)) == bad
        assert await sizes(services) == {("available", 2 * MIB): 1000}


async def test_concurrent_bulk_jobs_each_expand_every_volume_once(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    await add_volumes(services, 300, backend="null")
    async with running_worker(bulk_settings):
        requests = [await services.bulk.request(BulkExpandRequest(BY_ONE, max_concurrent=9)) for _ in range(2)]

        jobs = [await ended(services, job) for job in requests]

    assert [(job.status, job.succeeded) for job in jobs] == [("succeeded", 300)] * 2
    assert await sizes(services) == {("available", 3 * MIB): 300}


async def test_job_without_items_ends_at_once(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(bulk_settings):
        job = await ended(services, await services.bulk.request(BulkExpandRequest(BY_ONE)))

    assert (job.status, job.total, job.succeeded, job.failed, job.skipped) == ("succeeded", 0, 0, 0, 0)


async def test_ledger_has_the_reason_for_every_unchanged_volume(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    (small,) = await add_volumes(services, 1, backend="null")
    gone = uuid4()
    policy = GrowthPolicy(to=2 * MIB, up_to=4 * MIB)
    async with running_worker(bulk_settings):
        selection = Selection(ids=(small, gone))
        job = await ended(services, await services.bulk.request(BulkExpandRequest(policy, selection=selection)))
        codes = {volume_id: item.code for volume_id, item in (await items(services, job)).items()}
        assert codes == {small: "expanded", gone: "volume-gone"}
        assert (job.status, job.succeeded, job.skipped) == ("succeeded", 1, 1)

        repeated = await ended(services, await services.bulk.request(BulkExpandRequest(policy, selection=selection)))

    codes = {volume_id: item.code for volume_id, item in (await items(services, repeated)).items()}
    assert codes == {small: "already-large-enough", gone: "volume-gone"}


async def test_lane_measures_usage_and_decides_by_it(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    async with running_worker(bulk_settings):
        made = [await services.volumes.request_create(NewVolume(f"v{n}", MIB, "files")) for n in range(2)]
        full, empty = [(await ended(services, job)).volume_id for job in made]
        assert full is not None
        assert empty is not None
        Path(str(services.volumes.path(await services.volumes.get(full, project_id=DEFAULT_PROJECT)))).write_bytes(
            b"x" * MIB
        )

        policy = GrowthPolicy(percent=100, usage_above=80)
        job = await ended(services, await services.bulk.request(BulkExpandRequest(policy)))

    ledger = await items(services, job)
    assert {volume_id: item.code for volume_id, item in ledger.items()} == {full: "expanded", empty: "below-threshold"}
    assert (ledger[full].used, ledger[full].from_size, ledger[full].to_size) == (MIB, MIB, 2 * MIB)
    volume = await services.volumes.get(full, project_id=DEFAULT_PROJECT)
    assert (volume.size, volume.used) == (2 * MIB, MIB)
    assert volume.used_at is not None


async def test_changes_since_the_plan_are_respected(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    async with running_worker(bulk_settings):
        made = [await services.volumes.request_create(NewVolume(f"v{n}", MIB, "files")) for n in range(3)]
        deleted, grown, busy = [(await ended(services, job)).volume_id for job in made]
    assert deleted is not None
    assert grown is not None
    assert busy is not None
    job = await services.bulk.request(BulkExpandRequest(BY_ONE))
    async with services.database.transaction() as session:  # the plan, as the first attempt would insert it
        await session.execute(
            text("INSERT INTO job_items (job_id, volume_id, status) SELECT :job, id, 'pending' FROM volumes"),
            {"job": job.id},
        )
        await session.execute(text("DELETE FROM volumes WHERE id = :id"), {"id": deleted})
        await session.execute(text("UPDATE volumes SET size = 5 * 1048576 WHERE id = :id"), {"id": grown})
    operation = await services.volumes.request_expand(busy, Growth(to=7 * MIB))
    async with services.database.transaction() as session:  # no worker claims it for now
        await session.execute(
            text("UPDATE jobs SET run_at = 'infinity', dispatched_at = NULL, epoch = 1 WHERE id = :id"),
            {"id": operation.id},
        )
    async with running_worker(bulk_settings):

        async def is_postponed() -> bool:
            return (await items(services, job)).get(busy, Item()).code == "volume-busy"

        await until(is_postponed)
        async with services.database.transaction() as session:
            await session.execute(text("UPDATE jobs SET run_at = now() WHERE id = :id"), {"id": operation.id})
        ended_job = await ended(services, job)

    codes = {volume_id: (item.code, item.to_size) for volume_id, item in (await items(services, job)).items()}
    assert codes == {deleted: ("volume-gone", None), grown: ("expanded", 6 * MIB), busy: ("expanded", 8 * MIB)}
    assert adds_up(ended_job)


async def test_volume_busy_for_too_long_is_skipped(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    (volume_id,) = await add_volumes(services, 1, backend="null")
    operation = await services.volumes.request_expand(volume_id, Growth(to=7 * MIB))
    async with services.database.transaction() as session:
        await session.execute(
            text("UPDATE jobs SET run_at = 'infinity', dispatched_at = NULL, epoch = 1 WHERE id = :id"),
            {"id": operation.id},
        )
    async with running_worker(bulk_settings.model_copy(update={"busy_seconds": 0.5})):
        job = await ended(services, await services.bulk.request(BulkExpandRequest(BY_ONE)))

    assert (job.status, job.skipped, job.total) == ("succeeded", 1, 1)
    assert (await items(services, job))[volume_id].code == "volume-busy"


async def test_cancel_skips_unstarted_items_and_keeps_finished_ones(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    await add_volumes(services, 400, backend="null")
    async with running_worker(bulk_settings):
        job = await services.bulk.request(BulkExpandRequest(BY_ONE, max_concurrent=2))

        async def some_succeeded() -> bool:
            return bool((await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)).succeeded)

        await until(some_succeeded)
        await services.jobs.cancel(job.id)
        job = await ended(services, job)

        assert job.status == "cancelled"
        assert adds_up(job)
        assert job.succeeded
        assert job.skipped
        assert await sizes(services) == {("available", 2 * MIB): job.succeeded, ("available", MIB): job.skipped}
        retry = await ended(services, await services.jobs.retry(job.id))

    assert (retry.succeeded, retry.total) == (job.skipped, job.skipped)
    assert await sizes(services) == {("available", 2 * MIB): 400}


async def test_cancel_of_a_queued_bulk_job_touches_no_volume(services: Services) -> None:
    await add_volumes(services, 3, backend="null")
    job = await services.bulk.request(BulkExpandRequest(BY_ONE))

    job = await services.jobs.cancel(job.id)

    assert job.status == "cancelled"
    assert await sizes(services) == {("available", MIB): 3}


async def test_retry_of_an_unplanned_bulk_job_covers_all_volumes(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    await add_volumes(services, 3, backend="null")
    job = await services.jobs.cancel((await services.bulk.request(BulkExpandRequest(BY_ONE))).id)

    async with running_worker(bulk_settings):
        retry = await ended(services, await services.jobs.retry(job.id))

    assert (retry.status, retry.succeeded, retry.total) == ("succeeded", 3, 3)


async def test_job_ends_and_volumes_are_released_if_all_lanes_fail(
    services: Services, bulk_settings: Settings, running_worker: RunningWorker
) -> None:
    await add_volumes(services, 10, backend="null")
    # Every lane fails when it records a success, and when it records that a success cannot be recorded.
    broken = "CHECK (status <> 'succeeded' AND code IS DISTINCT FROM 'internal')"
    async with services.database.transaction() as session:
        await session.execute(text(f"ALTER TABLE job_items ADD CONSTRAINT broken {broken}"))
    async with running_worker(bulk_settings.model_copy(update={"max_attempts": 2, "retry_seconds": 0.01})):
        job = await services.bulk.request(BulkExpandRequest(BY_ONE, max_concurrent=3))
        async with services.database.transaction() as session:
            await session.execute(text("UPDATE jobs SET max_attempts = 2 WHERE id = :id"), {"id": job.id})
        job = await ended(services, job)

    assert (job.status, job.failed, job.total) == ("failed", 10, 10)
    assert {item.code for item in (await items(services, job)).values()} == {"lanes-lost"}
    assert {state for state, _ in await sizes(services)} == {"available"}


async def test_preview_returns_the_plan_and_changes_nothing(services: Services) -> None:
    await add_volumes(services, 3, backend="null", labels={"tier": "gold"})
    request = BulkExpandRequest(
        GrowthPolicy(percent=50, up_to=MIB + 4096), selection=Selection(labels={"tier": "gold"})
    )

    plan = await services.bulk.preview(request, project_id=DEFAULT_PROJECT)

    assert (plan.total, plan.grows, plan.bytes, plan.measured_at) == (3, 3, 3 * 4096, None)
    assert {(item.from_size, item.to_size) for item in plan.items} == {(MIB, MIB + 4096)}
    assert await sizes(services) == {("available", MIB): 3}
    async with services.database.transaction() as session:
        assert await session.scalar(text("SELECT count(*) FROM jobs")) == 0


async def test_concurrency_above_the_configured_limit_is_refused(services: Services) -> None:
    with pytest.raises(Invalid, match="max_concurrent"):
        await services.bulk.request(BulkExpandRequest(BY_ONE, max_concurrent=101))
