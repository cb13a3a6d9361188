"""Bulk jobs against their ledgers: counters match the items, and an ended job has no unfinished item."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from sqlalchemy import text

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.bulk.model import Lane
from domain.check.jobs import Ledgers
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.context import Fence
from tests.integration.check_builders import findings, grant_at, repair_all, report, run_check
from tests.integration.job_builders import MIB, row, set_job, sql, volume_row
from tests.integration.snapshot_builders import carried_out, claimed
from tests.support.bulk import add_volumes

PLANNED = 3


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[Services]:
    async with open_services(settings, adopt=True) as services:
        yield services


@pytest.fixture
async def bulk(services: Services) -> Job:
    """A bulk job that is delegated to one lane."""
    for volume_id in await add_volumes(services, PLANNED, backend="memory"):
        await services.backends.get("memory").create(volume_id, MIB, grant_at(0))
    wanted = BulkExpandRequest(policy=GrowthPolicy(by=MIB), max_concurrent=1)
    return await carried_out(services, await services.bulk.request(wanted))


async def a_lane(services: Services) -> Job:
    ((lane_id,),) = await sql(services, "SELECT id FROM jobs WHERE kind = 'bulk.lane'")
    return await row(services, lane_id)


async def taken(services: Services) -> tuple[Lane, list[UUID]]:
    """Let the lane claim all items and acquire their volumes; return it and the volumes."""
    _, order = await claimed(services, await a_lane(services))
    lane = Lane.from_job(order)
    items = await services.bulk.lane_steps(lane).claim_items(10)
    return lane, [task.volume_id for task in await services.bulk.lane_steps(lane).acquire_volumes(items, {})]


async def end(services: Services, *job_ids: UUID) -> None:
    for job_id in job_ids:
        await set_job(services, job_id, "status = 'failed', finished_at = now(), lease_expires_at = NULL")


async def test_running_bulk_job_is_not_reported(services: Services, bulk: Job) -> None:
    assert await findings(services) == []
    lane, _ = await taken(services)
    assert await findings(services) == []
    items = await services.bulk.lane_steps(lane).reclaim_items()
    assert items == []
    assert (await report(services))[1]["ledgers"] == 1
    assert (await row(services, bulk.id)).total == PLANNED


async def test_unfinished_items_of_an_ended_bulk_job_are_failed_and_their_volumes_released(
    services: Services, bulk: Job
) -> None:
    lane, volumes = await taken(services)
    await sql(services, "UPDATE job_items SET status = 'pending' WHERE volume_id = :id", id=volumes[0])
    await end(services, lane.job_id, bulk.id)

    assert ("items-unfinished", f"job {bulk.id}", True) in await findings(services)
    assert sorted(set(await repair_all(services))) == ["items-unfinished", "no-job"]
    assert await sql(services, "SELECT DISTINCT status, code FROM job_items") == [("failed", "lanes-lost")]
    assert [(await volume_row(services, volume_id))["state"] for volume_id in volumes] == ["available"] * PLANNED
    assert (await row(services, bulk.id)).failed == PLANNED


@pytest.mark.parametrize("counter", ["total", "succeeded", "failed", "skipped"])
async def test_counter_that_differs_from_the_ledger_is_recounted(services: Services, bulk: Job, counter: str) -> None:
    await set_job(services, bulk.id, f"{counter} = {counter} + 1")

    assert await findings(services) == [("miscounted", f"job {bulk.id}", True)]
    assert await repair_all(services) == ["miscounted"]
    found = await row(services, bulk.id)
    assert (found.status, found.total, found.succeeded, found.failed, found.skipped) == ("running", PLANNED, 0, 0, 0)


async def test_recount_ends_a_job_that_only_a_wrong_counter_kept_running(services: Services, bulk: Job) -> None:
    await sql(services, "UPDATE job_items SET status = 'succeeded', code = 'expanded'")
    await end(services, (await a_lane(services)).id)

    assert await repair_all(services) == ["miscounted"]
    found = await row(services, bulk.id)
    assert (found.status, found.succeeded) == ("succeeded", PLANNED)


async def test_ended_job_with_a_pruned_ledger_is_not_reported(services: Services, bulk: Job) -> None:
    await end(services, (await a_lane(services)).id, bulk.id)
    await sql(services, "DELETE FROM job_items")

    assert await findings(services) == []


async def test_reading_a_ledger_may_take_longer_than_any_other_transaction(
    settings: Settings, services: Services, bulk: Job
) -> None:
    locked = asyncio.Event()

    async def lock_items() -> None:
        async with services.database.transaction() as session:
            await session.execute(text("LOCK TABLE job_items"))
            locked.set()
            await asyncio.sleep(1.5)

    async with open_services(settings.model_copy(update={"database_timeout_seconds": 0.5}), adopt=True) as impatient:
        locking = asyncio.create_task(lock_items())
        await locked.wait()
        checked = Counter[str]()
        assert [one async for one in Ledgers(impatient.database).findings(checked, repair=False)] == []
        await locking

    assert checked == {"ledgers": 1}


async def test_unfinished_plan_is_not_reported(services: Services) -> None:
    await add_volumes(services, 1, backend="null")
    wanted = BulkExpandRequest(policy=GrowthPolicy(by=MIB), max_concurrent=1)
    _, own = await claimed(services, await services.bulk.request(wanted))
    await services.handlers[own.kind].perform(own, grant_at(*own.fence))
    await sql(services, "DELETE FROM volumes")

    assert await findings(services) == []


async def test_parent_long_without_lanes_is_reported(services: Services, bulk: Job) -> None:
    await end(services, (await a_lane(services)).id)
    assert await findings(services) == []  # maintenance may still assign new lanes
    await sql(services, "UPDATE jobs SET finished_at = now() - interval '40 seconds' WHERE kind = 'bulk.lane'")

    assert await findings(services) == [("no-lanes", f"job {bulk.id}", False)]
    assert await services.bulk.assign_lanes() == 1
    assert await findings(services) == []


async def test_volume_of_a_finished_item_still_held_by_the_parent_is_released(services: Services, bulk: Job) -> None:
    _, volumes = await taken(services)
    await sql(
        services, "UPDATE job_items SET status = 'succeeded', code = 'expanded' WHERE volume_id = :id", id=volumes[0]
    )
    await set_job(services, bulk.id, "succeeded = 1")

    assert await repair_all(services) == ["no-job"]
    assert (await volume_row(services, volumes[0]))["state"] == "available"
    assert (await volume_row(services, volumes[1]))["state"] == "expanding"


async def test_volumes_of_a_stale_lane_are_raised_above_the_stored_fence(services: Services, bulk: Job) -> None:
    lane, volumes = await taken(services)
    driver = services.backends.get("memory")
    version = (await volume_row(services, volumes[0]))["version"]
    await driver.expand(volumes[0], MIB, grant_at(*Fence(version, lane.epoch)))  # the lane's own attempt
    assert await findings(services) == []
    await driver.expand(volumes[1], MIB, grant_at(version, lane.epoch + 1))
    await driver.expand(volumes[2], MIB, grant_at(version + 5))

    assert await repair_all(services) == ["fence-behind"] * 2
    versions = [(await volume_row(services, volume_id))["version"] for volume_id in volumes]
    assert versions == [version, version + 1, version + 6]
    found = await run_check(services)
    assert found == []
