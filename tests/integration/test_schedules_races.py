"""Concurrent starts, changes, deletes and deaths of workers: no job twice, none lost, no schedule stuck."""

import asyncio
import os
import signal
import subprocess
import sys
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from domain.access.service import may_own_schedules
from domain.errors import ScheduleBusy, ScheduleNotFound
from domain.jobs.model import Job
from domain.schedules.model import Schedule
from domain.schedules.runner import ScheduleRunner
from domain.services import Services
from domain.settings import Settings
from tests.integration.job_builders import an_engine, row, sql
from tests.integration.schedule_builders import (
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

ROUNDS = 15


def as_read(schedule: Schedule) -> Schedule:
    """Copy a schedule as a slow worker has read it."""
    columns = ("id", "project_id", "name", "cron", "time_zone", "catch_up_seconds", "next_run_at")
    return Schedule(**{name: getattr(schedule, name) for name in columns})


class Dying:
    """An action that is killed right after it has inserted its job."""

    def check(self, params: dict[str, Any]) -> None:
        """Accept all parameters."""

    def __init__(self, services: Services) -> None:
        self._action = services.actions["bulk.expand"]

    async def request(
        self,
        session: AsyncSession,
        params: dict[str, Any],
        *,
        project_id: UUID,
        schedule_id: UUID,
        scheduled_for: datetime,
    ) -> Job:
        await self._action.request(
            session, params, project_id=project_id, schedule_id=schedule_id, scheduled_for=scheduled_for
        )
        raise asyncio.CancelledError


async def test_death_before_the_commit_has_no_effect(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    clock.now += MINUTE
    actions = {"bulk.expand": Dying(services)}
    dying = ScheduleRunner(services.database, services.queue, actions, may_own=may_own_schedules, clock=clock)
    with pytest.raises(asyncio.CancelledError):
        await dying.start_due()

    assert (await jobs_of(services, schedule.id), await runs_of(services, schedule.id)) == ([], [])
    assert await a_schedule_runner(services, clock).start_due() == 1


#: A worker that is killed after the commit of the run, before its message is sent.
KILLED = """
import asyncio, os, signal
from domain.services import open_services
from domain.settings import load_settings

async def start() -> None:
    async with open_services(load_settings(), adopt=True) as services:
        async def die(_) -> None:
            os.kill(os.getpid(), signal.SIGKILL)
        services.queue.dispatch = die
        await services.schedule_runner.start_due()

asyncio.run(start())
"""


async def test_job_is_found_if_its_worker_dies_before_the_dispatch(services: Services, settings: Settings) -> None:
    schedule = await a_schedule(services, Clock())
    await sql(services, "UPDATE schedules SET next_run_at = date_trunc('minute', now())")
    environment = os.environ | {
        "CISTERN_DATABASE_URL": settings.database_url,
        "CISTERN_REDIS_URL": settings.redis_url,
        "CISTERN_BACKENDS": '{"memory": "memory:"}',
    }
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", KILLED], env=environment, capture_output=True, check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # If a new minute has just begun, its run is skipped, because the job of the killed worker is still active.
    assert await services.schedule_runner.start_due() == 0
    ((job_id,),) = await sql(services, "SELECT id FROM jobs WHERE schedule_id = :id", id=schedule.id)
    await sql(services, "UPDATE jobs SET dispatched_at = now() - interval '1 minute'")

    assert await an_engine(services).maintenance.redispatch_lost() == 1
    assert await an_engine(services).claim((await row(services, job_id)).message) is not None


async def test_locked_schedule_is_skipped(services: Services) -> None:
    clock = Clock()
    locked = await a_schedule(services, clock, name="locked")
    unlocked = await a_schedule(services, clock, name="unlocked")
    clock.now += MINUTE
    async with services.database.transaction() as session:
        await session.execute(text("SELECT id FROM schedules WHERE id = :id FOR UPDATE"), {"id": locked.id})
        async with asyncio.timeout(4):
            assert await asyncio.create_task(a_schedule_runner(services, clock).start_due()) == 1

    assert (await jobs_of(services, locked.id), await jobs_of(services, unlocked.id)) == ([], [clock.now])
    assert await a_schedule_runner(services, clock).start_due() == 1


async def test_run_started_since_the_read_is_not_started_again(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    clock.now += MINUTE
    due = as_read(schedule)
    assert await a_schedule_runner(services, clock).start_due() == 1
    await end_jobs(services)

    assert await a_schedule_runner(services, clock)._start_if_unchanged(due, clock.now) is None
    assert await jobs_of(services, schedule.id) == [clock.now]


@pytest.mark.parametrize("changes", [{"cron": "*/2 * * * *"}, {"time_zone": "Europe/Berlin"}, {"catch_up_seconds": 0}])
async def test_schedule_changed_since_the_read_is_not_started(services: Services, changes: dict[str, Any]) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    clock.now += MINUTE
    due = as_read(schedule)
    await a_service(services, clock).change(schedule.id, changes)
    await sql(services, "UPDATE schedules SET next_run_at = :due", due=schedule.next_run_at)

    assert await a_schedule_runner(services, clock)._start_if_unchanged(due, clock.now) is None
    assert await jobs_of(services, schedule.id) == []


async def test_concurrent_requests_and_starts_create_one_job(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    for number in range(1, ROUNDS + 1):
        clock.now += MINUTE
        runners = [a_schedule_runner(services, clock) for _ in range(3)]
        requested = [runner.run_now(schedule.id) for runner in runners]
        due = [runner.start_due() for runner in runners]
        outcomes = await asyncio.gather(*requested, *due, return_exceptions=True)
        assert {type(one) for one in outcomes if isinstance(one, BaseException)} <= {ScheduleBusy}
        await runners[0].start_due()  # the schedule was skipped if a request had it locked
        assert len(await jobs_of(services, schedule.id)) == number
        await end_jobs(services)
    runs = [run for run in await runs_of(services, schedule.id) if run[1].microsecond == 0]
    assert [time for _, time, *_ in runs] == [MIDNIGHT + number * MINUTE for number in range(1, ROUNDS + 1)]


async def test_concurrent_change_and_start_start_nothing_twice(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    for number in range(ROUNDS):
        clock.now += MINUTE
        before = len(await jobs_of(services, schedule.id))
        cron = ("*/1 * * * *", "* * * * *")[number % 2]
        await asyncio.gather(
            a_schedule_runner(services, clock).start_due(),
            a_service(services, clock).change(schedule.id, {"cron": cron}),
            a_schedule_runner(services, clock).start_due(),
        )
        assert len(await jobs_of(services, schedule.id)) - before in (0, 1)
        assert await a_schedule_runner(services, clock).start_due() == 0
        await end_jobs(services)
    times = await jobs_of(services, schedule.id)
    assert len(times) == len(set(times))


async def test_concurrent_pause_takes_effect_before_or_after_the_start(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    for _ in range(ROUNDS):
        clock.now += MINUTE
        before = len(await jobs_of(services, schedule.id))
        started, _ = await asyncio.gather(
            a_schedule_runner(services, clock).start_due(),
            a_service(services, clock).change(schedule.id, {"enabled": False}),
        )
        assert len(await jobs_of(services, schedule.id)) == before + started
        assert await a_schedule_runner(services, clock).start_due() == 0
        await a_service(services, clock).change(schedule.id, {"enabled": True})
        await end_jobs(services)


async def test_concurrent_delete_leaves_a_complete_job_or_none(services: Services) -> None:
    clock = Clock()
    for _ in range(ROUNDS):
        schedule = await a_schedule(services, clock)
        clock.now += MINUTE
        started, requested, _ = await asyncio.gather(
            a_schedule_runner(services, clock).start_due(),
            a_schedule_runner(services, clock).run_now(schedule.id),
            a_service(services, clock).delete(schedule.id),
            return_exceptions=True,
        )
        assert started in (0, 1)
        assert isinstance(requested, Job | ScheduleBusy | ScheduleNotFound)
        assert len(await jobs_of(services, schedule.id)) == (started == 1) + isinstance(requested, Job)
        assert await runs_of(services, schedule.id) == []
        await end_jobs(services)
    assert await sql(services, "SELECT * FROM schedules") == []
