"""Whoever starts, changes, deletes or dies at the same time: no job twice, none lost, nothing stuck."""

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
    a_service,
    a_starter,
    end_jobs,
    jobs_of,
    runs_of,
)

ROUNDS = 15


def as_seen(schedule: Schedule) -> Schedule:
    """What a worker has read that then is slow."""
    columns = ("id", "name", "cron", "time_zone", "catch_up_seconds", "next_run_at")
    return Schedule(**{name: getattr(schedule, name) for name in columns})


class Dying:
    """An action that asks for its job, and then dies."""

    def check(self, params: dict[str, Any]) -> None:
        """All are good."""

    def __init__(self, services: Services) -> None:
        self._action = services.actions["bulk.expand"]

    async def request(
        self, session: AsyncSession, params: dict[str, Any], *, schedule_id: UUID, scheduled_for: datetime
    ) -> Job:
        await self._action.request(session, params, schedule_id=schedule_id, scheduled_for=scheduled_for)
        raise asyncio.CancelledError


async def test_who_dies_before_the_commit_has_done_nothing(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    clock.now += MINUTE
    dying = ScheduleRunner(services.database, services.queue, {"bulk.expand": Dying(services)}, clock=clock)
    with pytest.raises(asyncio.CancelledError):
        await dying.start_due()

    assert (await jobs_of(services, schedule.id), await runs_of(services, schedule.id)) == ([], [])
    assert await a_starter(services, clock).start_due() == 1


#: A worker that is killed as soon as the run is written, before anybody has heard of it.
KILLED = """
import asyncio, os, signal
from domain.services import open_services
from domain.settings import load_settings

async def start() -> None:
    async with open_services(load_settings()) as services:
        async def die(_) -> None:
            os.kill(os.getpid(), signal.SIGKILL)
        services.queue.epoch = die
        await services.starter.start_due()

asyncio.run(start())
"""


async def test_the_job_of_one_who_dies_between_commit_and_ring_is_found(services: Services, settings: Settings) -> None:
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
    assert (
        await services.schedule_runner.start_due() == 0
    )  # unless a minute has begun just now, and then the run is skipped
    ((job_id,),) = await sql(services, "SELECT id FROM jobs WHERE schedule_id = :id", id=schedule.id)
    await sql(services, "UPDATE jobs SET dispatched_at = now() - interval '1 minute'")

    assert await an_engine(services).redispatch_lost() == 1
    assert await an_engine(services).claim((await row(services, job_id)).dispatch) is not None


async def test_a_schedule_that_somebody_has_locked_is_passed_over(services: Services) -> None:
    clock = Clock()
    held = await a_schedule(services, clock, name="held")
    free = await a_schedule(services, clock, name="free")
    clock.now += MINUTE
    async with services.database.transaction() as session:
        await session.execute(text("SELECT id FROM schedules WHERE id = :id FOR UPDATE"), {"id": held.id})
        async with asyncio.timeout(4):
            assert await asyncio.create_task(a_starter(services, clock).start_due()) == 1

    assert (await jobs_of(services, held.id), await jobs_of(services, free.id)) == ([], [clock.now])
    assert await a_starter(services, clock).start_due() == 1


async def test_who_has_looked_before_somebody_else_has_started_it_leaves_it_alone(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    clock.now += MINUTE
    seen = as_seen(schedule)
    assert await a_starter(services, clock).start_due() == 1
    await end_jobs(services)

    assert await a_starter(services, clock)._run_if_due(seen, clock.now) is None
    assert await jobs_of(services, schedule.id) == [clock.now]


@pytest.mark.parametrize("changes", [{"cron": "*/2 * * * *"}, {"time_zone": "Europe/Berlin"}, {"catch_up_seconds": 0}])
async def test_who_has_looked_before_the_schedule_was_changed_does_not_start_it(
    services: Services, changes: dict[str, Any]
) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    clock.now += MINUTE
    seen = as_seen(schedule)
    await a_service(services, clock).change(schedule.id, changes)
    await sql(services, "UPDATE schedules SET next_run_at = :due", due=schedule.next_run_at)

    assert await a_starter(services, clock)._run_if_due(seen, clock.now) is None
    assert await jobs_of(services, schedule.id) == []


async def test_many_who_ask_for_a_run_and_many_who_start_it_get_one_job(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    for number in range(1, ROUNDS + 1):
        clock.now += MINUTE
        starters = [a_starter(services, clock) for _ in range(3)]
        asked = [schedule_runner.run_now(schedule.id) for schedule_runner in starters]
        due = [schedule_runner.start_due() for schedule_runner in starters]
        outcomes = await asyncio.gather(*asked, *due, return_exceptions=True)
        assert {type(one) for one in outcomes if isinstance(one, BaseException)} <= {ScheduleBusy}
        await starters[0].start_due()  # one that was passed over, because a run was being asked for
        assert len(await jobs_of(services, schedule.id)) == number
        await end_jobs(services)
    runs = [run for run in await runs_of(services, schedule.id) if run[1].microsecond == 0]
    assert [moment for _, moment, *_ in runs] == [MIDNIGHT + number * MINUTE for number in range(1, ROUNDS + 1)]


async def test_a_change_at_the_moment_of_a_start_starts_nothing_twice(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    for number in range(ROUNDS):
        clock.now += MINUTE
        before = len(await jobs_of(services, schedule.id))
        cron = ("*/1 * * * *", "* * * * *")[number % 2]
        await asyncio.gather(
            a_starter(services, clock).start_due(),
            a_service(services, clock).change(schedule.id, {"cron": cron}),
            a_starter(services, clock).start_due(),
        )
        assert len(await jobs_of(services, schedule.id)) - before in (0, 1)
        assert await a_starter(services, clock).start_due() == 0
        await end_jobs(services)
    times = await jobs_of(services, schedule.id)
    assert len(times) == len(set(times))


async def test_a_pause_at_the_moment_of_a_start_is_before_it_or_after_it(services: Services) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    for _ in range(ROUNDS):
        clock.now += MINUTE
        before = len(await jobs_of(services, schedule.id))
        started, _ = await asyncio.gather(
            a_starter(services, clock).start_due(), a_service(services, clock).change(schedule.id, {"enabled": False})
        )
        assert len(await jobs_of(services, schedule.id)) == before + started
        assert await a_starter(services, clock).start_due() == 0
        await a_service(services, clock).change(schedule.id, {"enabled": True})
        await end_jobs(services)


async def test_a_schedule_that_is_deleted_while_it_is_started_leaves_a_whole_job_or_none(services: Services) -> None:
    clock = Clock()
    for _ in range(ROUNDS):
        schedule = await a_schedule(services, clock)
        clock.now += MINUTE
        started, asked, _ = await asyncio.gather(
            a_starter(services, clock).start_due(),
            a_starter(services, clock).run_now(schedule.id),
            a_service(services, clock).delete(schedule.id),
            return_exceptions=True,
        )
        assert started in (0, 1)
        assert isinstance(asked, Job | ScheduleBusy | ScheduleNotFound)
        assert len(await jobs_of(services, schedule.id)) == (started == 1) + isinstance(asked, Job)
        assert await runs_of(services, schedule.id) == []
        await end_jobs(services)
    assert await sql(services, "SELECT * FROM schedules") == []
