"""What makes events, and what does not; what ends as it should costs no statement more."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.errors import QuotaExceeded
from domain.jobs.attempt import Cancelled, Failed, RetryIn, Succeeded
from domain.jobs.store.orphans import EXTRA_CLAIMS
from domain.jobs.store.parents import ParentRepository
from domain.jobs.webhooks.model import EventType
from domain.services import Services, open_services
from domain.settings import Settings
from tests.integration.job_builders import MIB, a_queued_expand, counted_statements, run_out, set_job, sql
from tests.integration.project_builders import a_project
from tests.integration.schedule_builders import Clock, a_schedule, a_schedule_runner
from tests.integration.webhook_builders import (
    ERROR,
    a_claimed_job,
    a_failed_job,
    a_webhook,
    deliveries,
    event_types,
)

FULL = QuotaExceeded(quota="max_volumes", left=0, requested=1)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings that let webhooks go to this machine."""
    return settings.model_copy(update={"webhook_hosts": ("127.0.0.1",)})


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[Services]:
    async with open_services(settings, adopt=True) as services:
        yield services


async def a_running_bulk(services: Services, **columns: int) -> UUID:
    """Make a delegated bulk job with these counters out of another job."""
    job = await a_queued_expand(services)
    counters = {"succeeded": 0, "failed": 0, "skipped": 0} | columns
    values = ", ".join(f"{name} = {value}" for name, value in counters.items())
    await set_job(services, job.id, f"kind = 'bulk.expand', status = 'running', started_at = now(), {values}")
    return job.id


async def test_bulk_job_makes_an_event_when_its_last_item_ends_and_not_before(services: Services) -> None:
    await a_webhook(services)
    job_id = await a_running_bulk(services, total=4, succeeded=1)
    async with services.database.transaction() as session:
        await ParentRepository(session).add_counts(job_id, failed=2)
    assert await event_types(services) == []

    async with services.database.transaction() as session:
        await ParentRepository(session).add_counts(job_id, succeeded=1)
    assert await event_types(services) == ["job.partial"]
    (delivery,) = await deliveries(services)
    job = delivery["params"]["event"]["data"]["job"]
    assert (job["id"], job["total"], job["succeeded"], job["failed"]) == (str(job_id), 4, 2, 2)


async def test_bulk_job_that_succeeds_makes_no_event(services: Services) -> None:
    await a_webhook(services)
    job_id = await a_running_bulk(services, total=1)
    async with services.database.transaction() as session:
        await ParentRepository(session).add_counts(job_id, succeeded=1)

    assert await event_types(services) == []


async def test_job_that_no_worker_survives_makes_an_event(services: Services) -> None:
    await a_webhook(services)
    engine, job = await a_claimed_job(services)
    await set_job(services, job.id, f"attempt = max_attempts + {EXTRA_CLAIMS}")
    await run_out(services, job.id)
    await engine.maintenance.rescue()

    assert await event_types(services) == ["job.failed"]


async def test_lanes_deliveries_and_cancelled_jobs_make_no_events(services: Services) -> None:
    await a_webhook(services)
    parent = await a_queued_expand(services)
    for change, outcome in (
        (f"parent_id = '{parent.id}'", Failed(ERROR)),
        ("kind = 'webhook.deliver'", Failed(ERROR)),
        ("cancel_requested_at = now()", Cancelled()),
    ):
        engine, job = await a_claimed_job(services)
        await set_job(services, job.id, change)
        assert await engine.settle(job, outcome)

    assert [job for job in await deliveries(services) if "event" in job["params"]] == []


async def test_job_of_a_schedule_makes_one_event_of_the_type_that_a_webhook_wants(services: Services) -> None:
    await a_webhook(services)
    for wanted in (EventType.JOB_FAILED, EventType.RUN_FAILED, EventType.JOB_PARTIAL):
        await a_webhook(services, "http://127.0.0.1:9/hook", wanted)
    engine, job = await a_claimed_job(services)
    await set_job(services, job.id, "schedule_id = gen_random_uuid(), scheduled_for = now()")
    await engine.settle(job, Failed(ERROR))

    assert sorted(await event_types(services)) == ["job.failed", "schedule.run_failed", "schedule.run_failed"]
    assert {job["params"]["event_id"] for job in await deliveries(services)} == {str(job.id)}


async def test_webhooks_of_other_projects_and_disabled_ones_get_no_events(services: Services) -> None:
    other = await a_project(services, "other")
    await a_webhook(services, project_id=other.id)
    await a_webhook(services)
    await sql(services, "UPDATE webhooks SET enabled = false WHERE project_id = :id", id=DEFAULT_PROJECT)
    await a_failed_job(services)

    assert await event_types(services) == []


async def test_missed_and_refused_runs_make_events(services: Services) -> None:
    await a_webhook(services)
    clock = Clock()
    await a_schedule(services, clock, catch_up_seconds=60)
    runner = a_schedule_runner(services, clock)
    clock.now += timedelta(hours=1)
    await runner.start_due()
    assert await event_types(services) == ["schedule.run_missed"]

    clock.now += timedelta(minutes=1)
    await runner.start_due()  # the job of the first run is not done
    assert await event_types(services) == ["schedule.run_missed", "schedule.run_failed"]
    missed, refused = (job["params"]["event"]["data"] for job in await deliveries(services))
    assert (missed["schedule"]["name"], missed["run"]["count"]) == ("often", 59)
    assert "still active" in refused["run"]["detail"]


async def test_limit_makes_one_event_an_hour_over_all_processes(settings: Settings, services: Services) -> None:
    await a_webhook(services)
    async with open_services(settings) as other:
        for one in (services, services, other):
            await one.webhooks.record_reached_limit(DEFAULT_PROJECT, FULL)
        await other.webhooks.record_reached_limit(
            DEFAULT_PROJECT, QuotaExceeded(quota="max_bytes", left=1, requested=2)
        )
    assert await event_types(services) == ["limit.reached"] * 2

    await sql(services, "UPDATE webhooks SET limits_told = limits_told || jsonb_build_object('max_volumes', 1)")
    async with open_services(settings) as later:
        await later.webhooks.record_reached_limit(DEFAULT_PROJECT, FULL)
    assert [job["params"]["event"]["data"]["limit"] for job in await deliveries(services)] == [
        *("max_volumes", "max_bytes", "max_volumes")
    ]


async def test_success_and_retries_cost_no_statement_and_a_failure_one(services: Services) -> None:
    await a_webhook(services)
    engine, job = await a_claimed_job(services)
    with counted_statements() as of_success:
        await engine.settle(job, Succeeded({"volume_id": str(job.volume_id), "size": 2 * MIB}))
    engine, job = await a_claimed_job(services)
    with counted_statements() as of_retry:
        await engine.settle(job, RetryIn(1.0, ERROR))
    await sql(services, "DELETE FROM webhooks")
    engine, job = await a_claimed_job(services)
    with counted_statements() as of_failure:
        await engine.settle(job, Failed(ERROR))

    about_webhooks = [sum("webhooks" in one for one in sent) for sent in (of_success, of_retry, of_failure)]
    assert about_webhooks == [0, 0, 1]
