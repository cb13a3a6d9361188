"""What housekeeping sees at a glance is what there is to do: no less, and for a house in order nothing."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from domain.services import Services
from tests.integration.bulk_builders import kill_lanes, with_its_lane
from tests.integration.job_builders import a_queued_expand, a_volume, an_engine, run_out, set_job, sql
from tests.integration.schedule_builders import Clock, a_schedule


async def seen(services: Services) -> set[str]:
    return {errand.event for errand, needed in await services.maintenance_tasks(an_engine(services)).due() if needed}


async def test_a_house_in_order_needs_nothing_although_jobs_wait_and_are_at_work(services: Services) -> None:
    engine = an_engine(services)
    await a_queued_expand(services)
    at_work = await a_queued_expand(services)
    await engine.claim(at_work.dispatch)
    await with_its_lane(services, engine)
    await a_schedule(services, Clock(datetime.now(UTC)), "0 0 1 1 *")

    assert await seen(services) == set()


async def test_a_lease_that_is_over_is_seen(services: Services) -> None:
    job = await a_queued_expand(services)
    await an_engine(services).claim(job.dispatch)
    await run_out(services, job.id)

    assert await seen(services) == {"jobs.rescued"}


async def test_a_worker_that_has_long_been_silent_is_seen(services: Services) -> None:
    await an_engine(services).renew([])
    await sql(services, "UPDATE workers SET heartbeat_at = now() - interval '2 hours'")

    assert await seen(services) == {"jobs.rescued"}


async def test_a_bulk_job_without_a_lane_is_seen(services: Services) -> None:
    await a_volume(services)
    job, _ = await with_its_lane(services, an_engine(services))
    await kill_lanes(services, job)

    assert await seen(services) == {"bulk.lanes_assigned"}


async def test_lanes_that_nobody_has_been_told_of_are_seen(services: Services) -> None:
    await a_volume(services)
    engine = an_engine(services)
    job, _ = await with_its_lane(services, engine)
    await sql(
        services,
        "UPDATE jobs SET status = 'queued', dispatched_at = NULL, lease_expires_at = NULL WHERE parent_id = :id",
        id=job.id,
    )

    assert await seen(services) == {"messages.dispatched"}


async def test_a_schedule_that_is_due_is_seen(services: Services) -> None:
    await a_schedule(services, Clock(datetime.now(UTC)))
    assert await seen(services) == set()

    await sql(services, "UPDATE schedules SET next_run_at = now()")
    assert await seen(services) == {"schedules.started"}


async def test_a_job_that_was_rung_long_ago_is_seen(services: Services) -> None:
    job = await a_queued_expand(services)
    await set_job(services, job.id, "dispatched_at = now() - interval '1 minute'")

    assert await seen(services) == {"messages.redispatched"}


async def test_a_job_that_waits_for_its_next_try_is_seen_when_its_time_has_come(services: Services) -> None:
    job = await a_queued_expand(services)
    await set_job(services, job.id, "dispatched_at = NULL, run_at = now() + interval '1 hour'")
    assert await seen(services) == set()

    await set_job(services, job.id, "run_at = now()")
    assert await seen(services) == {"messages.dispatched"}


async def test_whoever_cannot_see_takes_it_that_everything_is_needed(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    errands = services.maintenance_tasks(an_engine(services))
    monkeypatch.setattr(errands, "_question", text("SELECT nothing_of_the_kind"))

    assert [needed for _, needed in await errands.due()] == [True] * 5
