"""What the metrics say of the last runs of schedules."""

from datetime import timedelta

import pytest

from domain.schedules import last_runs as last_runs_module
from domain.schedules.last_runs import LastRun
from domain.services import Services
from tests.integration.job_builders import sql
from tests.integration.schedule_builders import MIDNIGHT, MINUTE, Clock, a_schedule, a_schedule_runner


@pytest.fixture
def clock() -> Clock:
    return Clock(MIDNIGHT)


async def run_and_end(services: Services, clock: Clock, status: str) -> None:
    """Start the due runs, and end their jobs at the time of the clock."""
    await a_schedule_runner(services, clock).start_due()
    ended = "started_at = now(), finished_at = :now, dispatched_at = NULL WHERE finished_at IS NULL"
    await sql(services, f"UPDATE jobs SET status = '{status}', {ended}", now=clock.now)


async def last_run(services: Services) -> LastRun | None:
    runs = await services.schedules.last_runs()
    assert len(runs) <= 1
    return runs[0] if runs else None


async def test_schedule_without_an_ended_run_has_no_metrics(services: Services, clock: Clock) -> None:
    await a_schedule(services, clock)
    assert await last_run(services) is None
    clock.now += MINUTE
    await a_schedule_runner(services, clock).start_due()

    assert await last_run(services) is None


@pytest.mark.parametrize(
    ("status", "failed"), [("succeeded", False), ("partial", True), ("failed", True), ("cancelled", True)]
)
async def test_run_has_failed_unless_its_job_succeeded(
    services: Services, clock: Clock, status: str, *, failed: bool
) -> None:
    await a_schedule(services, clock, name="often")
    clock.now += MINUTE
    await run_and_end(services, clock, status)
    succeeded_at = None if failed else clock.now

    assert await last_run(services) == LastRun("default", "often", failed, succeeded_at)


async def test_run_that_has_not_ended_leaves_the_result_of_the_one_before(services: Services, clock: Clock) -> None:
    await a_schedule(services, clock)
    clock.now += MINUTE
    await run_and_end(services, clock, "failed")
    clock.now += MINUTE
    await a_schedule_runner(services, clock).start_due()
    run = await last_run(services)

    assert run is not None
    assert run.failed


async def test_time_of_the_last_success_survives_later_failures(services: Services, clock: Clock) -> None:
    await a_schedule(services, clock)
    clock.now += MINUTE
    await run_and_end(services, clock, "succeeded")
    succeeded_at = clock.now
    for _ in range(3):
        clock.now += MINUTE
        await run_and_end(services, clock, "failed")

    assert await last_run(services) == LastRun("default", "often", failed=True, succeeded_at=succeeded_at)


async def test_run_that_was_missed_has_failed(services: Services, clock: Clock) -> None:
    await a_schedule(services, clock, cron="0 0 * * *", catch_up_seconds=60)
    clock.now += timedelta(days=1, hours=1)
    await a_schedule_runner(services, clock).start_due()

    assert await last_run(services) == LastRun("default", "often", failed=True, succeeded_at=None)


async def test_schedule_that_is_paused_has_no_metrics(services: Services, clock: Clock) -> None:
    await a_schedule(services, clock)
    clock.now += MINUTE
    await run_and_end(services, clock, "failed")
    await sql(services, "UPDATE schedules SET enabled = false, next_run_at = NULL")

    assert await last_run(services) is None


async def test_only_the_oldest_schedules_have_metrics(
    services: Services, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_runs_module, "MAX_SCHEDULES", 2)
    for name in ("one", "two", "three"):
        await a_schedule(services, clock, name=name)
    clock.now += MINUTE
    await run_and_end(services, clock, "succeeded")

    assert [run.schedule for run in await services.schedules.last_runs()] == ["one", "two"]


async def test_schedules_of_all_projects_have_metrics(services: Services, clock: Clock) -> None:
    await sql(services, "INSERT INTO projects (id, name) VALUES (gen_random_uuid(), 'other')")
    await a_schedule(services, clock, name="one")
    await a_schedule(services, clock, name="two")
    await sql(
        services, "UPDATE schedules SET project_id = (SELECT id FROM projects WHERE name = 'other') WHERE name = 'two'"
    )
    clock.now += MINUTE
    await run_and_end(services, clock, "succeeded")
    runs = await services.schedules.last_runs()

    assert [(run.project, run.schedule) for run in runs] == [("default", "one"), ("other", "two")]
