"""What housekeeping makes of schedules: started, missed, skipped, forgotten; and no time twice."""

from datetime import datetime, timedelta
from uuid import UUID

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
    a_service,
    a_starter,
    end_jobs,
    jobs_of,
    runs_of,
)
from tests.support.databases import run


async def next_run(services: Services, schedule_id: UUID) -> datetime | None:
    ((moment,),) = await sql(services, "SELECT next_run_at FROM schedules WHERE id = :id", id=schedule_id)
    found: datetime | None = moment
    return found


async def test_nothing_is_started_before_its_time(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock, "0 1 * * *")
    clock.now = MIDNIGHT + HOUR - timedelta(microseconds=1)

    assert await a_starter(services, clock).start_due() == 0
    clock.now = MIDNIGHT + HOUR
    assert await a_starter(services, clock).start_due() == 1
    assert await a_starter(services, clock).start_due() == 0
    assert await jobs_of(services, schedule.id) == [MIDNIGHT + HOUR]
    assert await next_run(services, schedule.id) == MIDNIGHT + 25 * HOUR


async def test_the_job_is_a_bulk_expansion_as_the_parameters_say(services: Services) -> None:
    clock = Clock()
    params = {"percent": 20, "usage_above": 80, "labels": {"team": "search"}, "max_concurrent": 3}
    schedule = await a_schedule(services, clock, params=params)
    clock.now += MINUTE
    await a_starter(services, clock).start_due()
    ((job_id,),) = await sql(services, "SELECT id FROM jobs")
    job = await services.jobs.get(job_id)

    assert (job.kind, job.schedule_id, job.scheduled_for) == ("bulk.expand", schedule.id, clock.now)
    assert (job.params["policy"]["percent"], job.params["policy"]["usage_above"]) == (20, 80)
    assert job.params["selection"] == {"ids": None, "labels": {"team": "search"}, "backend": None}
    assert job.params["max_concurrent"] == 3


async def test_a_run_that_was_missed_too_long_ago_is_recorded_and_not_started(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock, "0 1 * * *", catch_up_seconds=3600)
    clock.now = MIDNIGHT + 2 * HOUR + MINUTE
    await a_starter(services, clock).start_due()

    assert await jobs_of(services, schedule.id) == []
    assert await runs_of(services, schedule.id) == [("missed", MIDNIGHT + HOUR, MIDNIGHT + HOUR, 1)]
    assert await next_run(services, schedule.id) == MIDNIGHT + 25 * HOUR


async def test_a_span_of_missed_times_is_one_row_and_the_latest_is_started(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock, "0 * * * *")
    clock.now = MIDNIGHT + 30 * HOUR
    await a_starter(services, clock).start_due()

    assert await runs_of(services, schedule.id) == [
        ("missed", MIDNIGHT + HOUR, MIDNIGHT + 29 * HOUR, 29),
        ("started", clock.now, clock.now, 1),
    ]


async def test_a_year_of_minutes_that_were_missed_is_one_row(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    clock.now += timedelta(days=365)
    await a_starter(services, clock).start_due()

    assert [count for *_, count in await runs_of(services, schedule.id)] == [365 * 1440 - 1, 1]


async def test_a_run_whose_predecessor_is_still_going_is_skipped_and_says_which(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    for _ in range(3):
        clock.now += MINUTE
        await a_starter(services, clock).start_due()
    ((job_id,),) = await sql(services, "SELECT id FROM jobs")
    details = await sql(services, "SELECT DISTINCT detail FROM schedule_runs WHERE outcome = 'skipped'")

    assert [outcome for outcome, *_ in await runs_of(services, schedule.id)] == ["started", "skipped", "skipped"]
    assert [tuple(row) for row in details] == [(f"The job of the run before is still going ({job_id}).",)]


async def test_what_cannot_be_asked_for_any_more_is_skipped_and_says_why(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    await sql(services, 'UPDATE schedules SET params = \'{"by": 1, "max_concurrent": 101}\'')
    clock.now += MINUTE
    await a_starter(services, clock).start_due()
    ((detail,),) = await sql(services, "SELECT detail FROM schedule_runs")

    assert detail == "`max_concurrent` must be between 1 and 100."
    assert await next_run(services, schedule.id) == clock.now + MINUTE


async def test_a_schedule_that_nobody_can_deal_with_keeps_none_of_the_others(services: Services) -> None:
    clock = Clock()
    broken = await a_schedule(services, clock, name="broken")
    sound = await a_schedule(services, clock, name="sound")
    await sql(services, "UPDATE schedules SET time_zone = 'Europe/Atlantis' WHERE id = :id", id=broken.id)
    clock.now += MINUTE

    assert await a_starter(services, clock).start_due() == 1
    assert await jobs_of(services, sound.id) == [clock.now]


async def test_an_action_of_a_newer_version_is_left_to_workers_that_know_it(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    await sql(services, "UPDATE schedules SET action = 'bulk.paint'")
    clock.now += MINUTE

    assert await a_starter(services, clock).start_due() == 0
    assert await next_run(services, schedule.id) == clock.now
    assert await runs_of(services, schedule.id) == []


async def test_no_time_has_its_turn_twice_when_the_clock_steps_back(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    clock.now += 10 * MINUTE
    await a_starter(services, clock).start_due()
    await end_jobs(services)
    clock.now -= 5 * MINUTE
    await a_service(services, clock).change(schedule.id, {"enabled": False})
    await a_service(services, clock).change(schedule.id, {"enabled": True, "cron": "*/2 * * * *"})

    assert await next_run(services, schedule.id) == MIDNIGHT + 12 * MINUTE


async def test_a_run_that_is_asked_for_does_not_take_the_place_of_one_that_is_due(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    clock.now += MINUTE
    schedule_runner = a_starter(services, clock)
    await schedule_runner.run_now(schedule.id)
    await end_jobs(services)
    await schedule_runner.start_due()

    assert await jobs_of(services, schedule.id) == [clock.now, clock.now + timedelta(microseconds=1)]


async def test_in_production_postgresql_says_what_time_it_is(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock, "0 0 1 1 *")
    await sql(services, "UPDATE schedules SET next_run_at = now() - interval '1 second'")

    assert await services.schedule_runner.start_due() == 1
    moment = await next_run(services, schedule.id)
    ((expected,),) = await sql(services, "SELECT date_trunc('year', now() AT TIME ZONE 'UTC') + interval '1 year'")
    assert moment is not None
    assert moment.replace(tzinfo=None) == expected


async def test_a_worker_starts_what_is_due_and_carries_it_out(
    services: Services, settings: Settings, running_worker: RunningWorker
) -> None:
    schedule = await a_schedule(services, Clock())
    await sql(services, "UPDATE schedules SET next_run_at = date_trunc('minute', now())")

    async def has_succeeded() -> bool:
        _, runs = await services.schedules.get(schedule.id)
        return any(run.job_status == "succeeded" for run in runs)

    async with running_worker(settings):
        await until(has_succeeded)


async def test_runs_are_forgotten_with_the_jobs_of_their_time(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    for _ in range(3):
        clock.now += MINUTE
        await a_starter(services, clock).start_due()
        await end_jobs(services)
    await sql(
        services,
        "UPDATE schedule_runs SET created_at = now() - interval '31 days' WHERE scheduled_for < :now",
        now=clock.now,
    )

    assert await services.retention.prune() == Pruned(2, more=False)
    assert [moment for _, moment, *_ in await runs_of(services, schedule.id)] == [clock.now]


def test_a_fresh_installation_expands_every_night(empty_url: str) -> None:
    migrate(empty_url)
    ((row),) = run(empty_url, "SELECT *, next_run_at - now() AS ahead FROM schedules")
    seen = row._mapping

    assert (seen["name"], seen["cron"], seen["time_zone"]) == ("nightly-expand", "0 2 * * *", "UTC")
    assert (seen["action"], seen["params"]) == ("bulk.expand", {"policy": "autogrow"})
    assert (seen["enabled"], seen["catch_up_seconds"]) == (True, 6 * 3600)
    assert seen["next_run_at"].strftime("%H:%M:%S.%f%z") == "02:00:00.000000+0000"
    assert timedelta() < seen["ahead"] <= timedelta(days=1)
