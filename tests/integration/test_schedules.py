"""Due times of schedules: started, missed, skipped, pruned, and never run twice."""

from datetime import datetime, timedelta
from uuid import UUID

from domain.bulk.requests import Selection
from domain.db.base import DEFAULT_PROJECT
from domain.db.migrations import migrate
from domain.jobs.store.retention import Pruned
from domain.services import Services
from domain.settings import Settings
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import sql, until
from tests.integration.schedule_builders import (
    HOUR,
    MIDNIGHT,
    MINUTE,
    Clock,
    a_schedule,
    a_schedule_runner,
    a_service,
    end_jobs,
    jobs_of,
    runs_of,
)
from tests.support.databases import run


async def next_run(services: Services, schedule_id: UUID) -> datetime | None:
    ((time,),) = await sql(services, "SELECT next_run_at FROM schedules WHERE id = :id", id=schedule_id)
    found: datetime | None = time
    return found


async def test_run_is_not_started_early(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock, "0 1 * * *")
    clock.now = MIDNIGHT + HOUR - timedelta(microseconds=1)

    assert await a_schedule_runner(services, clock).start_due() == 0
    clock.now = MIDNIGHT + HOUR
    assert await a_schedule_runner(services, clock).start_due() == 1
    assert await a_schedule_runner(services, clock).start_due() == 0
    assert await jobs_of(services, schedule.id) == [MIDNIGHT + HOUR]
    assert await next_run(services, schedule.id) == MIDNIGHT + 25 * HOUR


async def test_job_has_the_parameters_of_the_schedule(services: Services) -> None:
    clock = Clock()
    params = {"percent": 20, "usage_above": 80, "labels": {"team": "search"}, "max_concurrent": 3}
    schedule = await a_schedule(services, clock, params=params)
    clock.now += MINUTE
    await a_schedule_runner(services, clock).start_due()
    ((job_id,),) = await sql(services, "SELECT id FROM jobs")
    job = await services.jobs.get(job_id, project_id=DEFAULT_PROJECT)

    assert (job.kind, job.schedule_id, job.scheduled_for) == ("bulk.expand", schedule.id, clock.now)
    assert (job.params["policy"]["percent"], job.params["policy"]["usage_above"]) == (20, 80)
    assert job.params["selection"] == Selection(labels={"team": "search"}).to_json()
    assert job.params["max_concurrent"] == 3


async def test_time_beyond_its_window_is_recorded_as_missed(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock, "0 1 * * *", catch_up_seconds=3600)
    clock.now = MIDNIGHT + 2 * HOUR + MINUTE
    await a_schedule_runner(services, clock).start_due()

    assert await jobs_of(services, schedule.id) == []
    assert await runs_of(services, schedule.id) == [("missed", MIDNIGHT + HOUR, MIDNIGHT + HOUR, 1)]
    assert await next_run(services, schedule.id) == MIDNIGHT + 25 * HOUR


async def test_missed_times_are_one_row_and_the_latest_is_started(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock, "0 * * * *")
    clock.now = MIDNIGHT + 30 * HOUR
    await a_schedule_runner(services, clock).start_due()

    assert await runs_of(services, schedule.id) == [
        ("missed", MIDNIGHT + HOUR, MIDNIGHT + 29 * HOUR, 29),
        ("started", clock.now, clock.now, 1),
    ]


async def test_year_of_missed_minutes_is_one_row(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    clock.now += timedelta(days=365)
    await a_schedule_runner(services, clock).start_due()

    assert [count for *_, count in await runs_of(services, schedule.id)] == [365 * 1440 - 1, 1]


async def test_run_is_skipped_with_the_active_job_of_the_previous_run(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    for _ in range(3):
        clock.now += MINUTE
        await a_schedule_runner(services, clock).start_due()
    ((job_id,),) = await sql(services, "SELECT id FROM jobs")
    details = await sql(services, "SELECT DISTINCT detail FROM schedule_runs WHERE outcome = 'skipped'")

    assert [outcome for outcome, *_ in await runs_of(services, schedule.id)] == ["started", "skipped", "skipped"]
    assert [tuple(row) for row in details] == [(f"The job of the previous run is still active ({job_id}).",)]


async def test_run_with_invalid_parameters_is_skipped_with_the_reason(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    await sql(services, 'UPDATE schedules SET params = \'{"by": 1, "max_concurrent": 101}\'')
    clock.now += MINUTE
    await a_schedule_runner(services, clock).start_due()
    ((detail,),) = await sql(services, "SELECT detail FROM schedule_runs")

    assert detail == "`max_concurrent` must be between 1 and 100."
    assert await next_run(services, schedule.id) == clock.now + MINUTE


async def test_broken_schedule_does_not_block_others(services: Services) -> None:
    clock = Clock()
    broken = await a_schedule(services, clock, name="broken")
    valid = await a_schedule(services, clock, name="valid")
    await sql(services, "UPDATE schedules SET time_zone = 'Europe/Atlantis' WHERE id = :id", id=broken.id)
    clock.now += MINUTE

    assert await a_schedule_runner(services, clock).start_due() == 1
    assert await jobs_of(services, valid.id) == [clock.now]


async def test_unknown_action_is_left_to_newer_workers(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    await sql(services, "UPDATE schedules SET action = 'bulk.paint'")
    clock.now += MINUTE

    assert await a_schedule_runner(services, clock).start_due() == 0
    assert await next_run(services, schedule.id) == clock.now
    assert await runs_of(services, schedule.id) == []


async def test_no_time_is_run_twice_after_the_clock_steps_back(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    clock.now += 10 * MINUTE
    await a_schedule_runner(services, clock).start_due()
    await end_jobs(services)
    clock.now -= 5 * MINUTE
    await a_service(services, clock).change(schedule.id, {"enabled": False})
    await a_service(services, clock).change(schedule.id, {"enabled": True, "cron": "*/2 * * * *"})

    assert await next_run(services, schedule.id) == MIDNIGHT + 12 * MINUTE


async def test_requested_run_does_not_replace_a_due_one(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    clock.now += MINUTE
    schedule_runner = a_schedule_runner(services, clock)
    await schedule_runner.run_now(schedule.id)
    await end_jobs(services)
    await schedule_runner.start_due()

    assert await jobs_of(services, schedule.id) == [clock.now, clock.now + timedelta(microseconds=1)]


async def test_default_clock_is_that_of_postgresql(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock, "0 0 1 1 *")
    await sql(services, "UPDATE schedules SET next_run_at = now() - interval '1 second'")

    assert await services.schedule_runner.start_due() == 1
    time = await next_run(services, schedule.id)
    ((expected,),) = await sql(services, "SELECT date_trunc('year', now() AT TIME ZONE 'UTC') + interval '1 year'")
    assert time is not None
    assert time.replace(tzinfo=None) == expected


async def test_worker_starts_and_completes_due_runs(
    services: Services, settings: Settings, running_worker: RunningWorker
) -> None:
    schedule = await a_schedule(services, Clock())
    await sql(services, "UPDATE schedules SET next_run_at = date_trunc('minute', now())")

    async def has_succeeded() -> bool:
        _, runs = await services.schedules.get(schedule.id, project_id=DEFAULT_PROJECT)
        return any(run.job_status == "succeeded" for run in runs)

    async with running_worker(settings):
        await until(has_succeeded)


async def test_old_runs_are_pruned_like_jobs(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    for _ in range(3):
        clock.now += MINUTE
        await a_schedule_runner(services, clock).start_due()
        await end_jobs(services)
    await sql(
        services,
        "UPDATE schedule_runs SET created_at = now() - interval '31 days' WHERE scheduled_for < :now",
        now=clock.now,
    )

    assert await services.retention.prune() == Pruned(2, more=False)
    assert [time for _, time, *_ in await runs_of(services, schedule.id)] == [clock.now]


def test_new_installation_has_a_nightly_expansion(empty_url: str) -> None:
    migrate(empty_url)
    ((row),) = run(empty_url, "SELECT *, next_run_at - now() AS ahead FROM schedules")
    schedule = row._mapping

    assert (schedule["name"], schedule["cron"], schedule["time_zone"]) == ("nightly-expand", "0 2 * * *", "UTC")
    assert (schedule["action"], schedule["params"]) == ("bulk.expand", {"policy": "autogrow"})
    assert (schedule["enabled"], schedule["catch_up_seconds"]) == (True, 6 * 3600)
    assert schedule["next_run_at"].strftime("%H:%M:%S.%f%z") == "02:00:00.000000+0000"
    assert timedelta() < schedule["ahead"] <= timedelta(days=1)
