"""Bulk jobs and their ledgers: counters that are the ledger's, and no item that nobody will finish."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from domain.bulk.expand.policy import BulkExpandRequest, GrowthPolicy
from domain.bulk.ledger import Lane
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.context import Fence
from tests.integration.check_builders import as_repaired, inspect, leave, told
from tests.integration.job_builders import MIB, row, set_job, sql, volume_row
from tests.integration.snapshot_builders import carried_out, claimed
from tests.support.bulk import add_volumes

PLANNED = 3


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[Services]:
    async with open_services(settings) as services:
        yield services


@pytest.fixture
async def bulk(services: Services) -> Job:
    """A bulk job that was handed over to one lane."""
    for volume_id in await add_volumes(services, PLANNED, backend="memory"):
        await services.backends.get("memory").create(volume_id, MIB, leave(0))
    wanted = BulkExpandRequest(policy=GrowthPolicy(by=MIB), max_concurrent=1)
    return await carried_out(services, await services.expansion.request_expand(wanted))


async def a_lane(services: Services) -> Job:
    ((lane_id,),) = await sql(services, "SELECT id FROM jobs WHERE kind = 'bulk.lane'")
    return await row(services, lane_id)


async def taken(services: Services) -> tuple[Lane, list[UUID]]:
    """Have the lane claim everything and take the volumes; returns it at work."""
    _, order = await claimed(services, await a_lane(services))
    lane = Lane.from_job(order)
    items = await services.chunks.claim(lane, 10)
    return lane, [task.volume_id for task in await services.chunks.acquire(lane, items, {})]


async def end(services: Services, *job_ids: UUID) -> None:
    for job_id in job_ids:
        await set_job(services, job_id, "status = 'failed', finished_at = now(), lease_expires_at = NULL")


async def test_a_bulk_job_at_work_is_no_finding(services: Services, bulk: Job) -> None:
    assert await told(services) == []
    lane, _ = await taken(services)
    assert await told(services) == []
    items = await services.chunks.claim_leftovers(lane)
    assert items == []
    assert (await services.check().report()).looked_at["ledgers"] == 1
    assert (await row(services, bulk.id)).total == PLANNED


async def test_items_that_nobody_will_finish_any_more_are_failed_and_their_volumes_let_go(
    services: Services, bulk: Job
) -> None:
    lane, volumes = await taken(services)
    await sql(services, "UPDATE job_items SET status = 'pending' WHERE volume_id = :id", id=volumes[0])
    await end(services, lane.lane_id, bulk.id)

    assert ("items-unfinished", f"job {bulk.id}", True) in await told(services)
    assert sorted(set(await as_repaired(services))) == ["items-unfinished", "no-job"]
    assert await sql(services, "SELECT DISTINCT status, code FROM job_items") == [("failed", "lanes-lost")]
    assert [(await volume_row(services, volume_id))["state"] for volume_id in volumes] == ["available"] * PLANNED
    assert (await row(services, bulk.id)).failed == PLANNED


@pytest.mark.parametrize("counter", ["total", "succeeded", "failed", "skipped"])
async def test_a_counter_that_is_not_its_ledgers_is_counted_afresh(services: Services, bulk: Job, counter: str) -> None:
    await set_job(services, bulk.id, f"{counter} = {counter} + 1")

    assert await told(services) == [("miscounted", f"job {bulk.id}", True)]
    assert await as_repaired(services) == ["miscounted"]
    found = await row(services, bulk.id)
    assert (found.status, found.total, found.succeeded, found.failed, found.skipped) == ("running", PLANNED, 0, 0, 0)


async def test_a_job_that_only_a_wrong_counter_kept_from_its_end_ends(services: Services, bulk: Job) -> None:
    await sql(services, "UPDATE job_items SET status = 'succeeded', code = 'expanded'")
    await end(services, (await a_lane(services)).id)

    assert await as_repaired(services) == ["miscounted"]
    found = await row(services, bulk.id)
    assert (found.status, found.succeeded) == ("succeeded", PLANNED)


async def test_an_ended_job_whose_ledger_was_pruned_is_no_finding(services: Services, bulk: Job) -> None:
    await end(services, (await a_lane(services)).id, bulk.id)
    await sql(services, "DELETE FROM job_items")

    assert await told(services) == []


async def test_a_plan_that_is_being_made_is_no_finding(services: Services) -> None:
    await add_volumes(services, 1, backend="null")
    wanted = BulkExpandRequest(policy=GrowthPolicy(by=MIB), max_concurrent=1)
    _, own = await claimed(services, await services.expansion.request_expand(wanted))
    await services.bulk.plan(own, leave(*own.fence))
    await sql(services, "DELETE FROM volumes")

    assert await told(services) == []


async def test_a_whole_without_lanes_is_told_when_nobody_has_cared_for_long(services: Services, bulk: Job) -> None:
    await end(services, (await a_lane(services)).id)
    assert await told(services) == []  # housekeeping may still come
    await sql(services, "UPDATE jobs SET finished_at = now() - interval '40 seconds' WHERE kind = 'bulk.lane'")

    assert await told(services) == [("no-lanes", f"job {bulk.id}", False)]
    assert await services.bulk.assign_lanes() == 1
    assert await told(services) == []


async def test_a_volume_whose_item_is_finished_but_that_the_whole_still_has_is_stranded(
    services: Services, bulk: Job
) -> None:
    _, volumes = await taken(services)
    await sql(
        services, "UPDATE job_items SET status = 'succeeded', code = 'expanded' WHERE volume_id = :id", id=volumes[0]
    )
    await set_job(services, bulk.id, "succeeded = 1")

    assert await as_repaired(services) == ["no-job"]
    assert (await volume_row(services, volumes[0]))["state"] == "available"
    assert (await volume_row(services, volumes[1]))["state"] == "expanding"


async def test_volumes_of_a_lane_that_would_be_refused_are_lifted_above_the_fence(
    services: Services, bulk: Job
) -> None:
    lane, volumes = await taken(services)
    driver = services.backends.get("memory")
    version = (await volume_row(services, volumes[0]))["version"]
    await driver.expand(volumes[0], MIB, leave(*Fence(version, lane.epoch)))  # the lane's own attempt
    assert await told(services) == []
    await driver.expand(volumes[1], MIB, leave(version, lane.epoch + 1))
    await driver.expand(volumes[2], MIB, leave(version + 5))

    assert await as_repaired(services) == ["fence-behind"] * 2
    versions = [(await volume_row(services, volume_id))["version"] for volume_id in volumes]
    assert versions == [version, version + 1, version + 6]
    found = await inspect(services)
    assert found == []
