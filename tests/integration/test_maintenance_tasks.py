"""One query finds the maintenance tasks that have work: all of them, and no others."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from domain.services import Services
from tests.integration.bulk_builders import a_claimed_lane, kill_lanes
from tests.integration.job_builders import a_queued_expand, a_volume, an_engine, run_out, set_job, sql
from tests.integration.schedule_builders import Clock, a_schedule


async def due(services: Services) -> set[str]:
    return {task.event for task, needed in await services.maintenance_tasks(an_engine(services)).due() if needed}


async def test_no_task_is_due_for_live_jobs_in_order(services: Services) -> None:
    engine = an_engine(services)
    await a_queued_expand(services)
    running = await a_queued_expand(services)
    await engine.claim(running.message)
    await a_claimed_lane(services, engine)
    await a_schedule(services, Clock(datetime.now(UTC)), "0 0 1 1 *")

    assert await due(services) == set()


async def test_rescue_is_due_for_an_expired_lease(services: Services) -> None:
    job = await a_queued_expand(services)
    await an_engine(services).claim(job.message)
    await run_out(services, job.id)

    assert await due(services) == {"jobs.rescued"}


async def test_rescue_is_due_for_a_long_silent_worker(services: Services) -> None:
    await an_engine(services).renew([])
    await sql(services, "UPDATE workers SET heartbeat_at = now() - interval '2 hours'")

    assert await due(services) == {"jobs.rescued"}


async def test_lane_assignment_is_due_for_a_bulk_job_without_lanes(services: Services) -> None:
    await a_volume(services)
    job, _ = await a_claimed_lane(services, an_engine(services))
    await kill_lanes(services, job)

    assert await due(services) == {"bulk.lanes_assigned"}


async def test_dispatch_is_due_for_undispatched_lanes(services: Services) -> None:
    await a_volume(services)
    engine = an_engine(services)
    job, _ = await a_claimed_lane(services, engine)
    await sql(
        services,
        "UPDATE jobs SET status = 'queued', dispatched_at = NULL, lease_expires_at = NULL WHERE parent_id = :id",
        id=job.id,
    )

    assert await due(services) == {"messages.dispatched"}


async def test_start_is_due_for_a_due_schedule(services: Services) -> None:
    await a_schedule(services, Clock(datetime.now(UTC)))
    assert await due(services) == set()

    await sql(services, "UPDATE schedules SET next_run_at = now()")
    assert await due(services) == {"schedules.started"}


async def test_redispatch_is_due_for_a_job_dispatched_long_ago(services: Services) -> None:
    job = await a_queued_expand(services)
    await set_job(services, job.id, "dispatched_at = now() - interval '1 minute'")

    assert await due(services) == {"messages.redispatched"}


async def test_dispatch_is_due_for_a_retry_once_its_delay_is_over(services: Services) -> None:
    job = await a_queued_expand(services)
    await set_job(services, job.id, "dispatched_at = NULL, run_at = now() + interval '1 hour'")
    assert await due(services) == set()

    await set_job(services, job.id, "run_at = now()")
    assert await due(services) == {"messages.dispatched"}


async def test_every_task_is_due_if_the_check_fails(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = services.maintenance_tasks(an_engine(services))
    monkeypatch.setattr(tasks, "_query", text("SELECT no_such_column"))

    assert [needed for _, needed in await tasks.due()] == [True] * 6
