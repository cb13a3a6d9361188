"""Schedules for tests, and replicas that keep their time by a clock which the test sets."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.schedules.model import Schedule
from domain.schedules.service import NewSchedule, ScheduleService
from domain.schedules.starter import Starter
from domain.services import Services
from tests.integration.job_builders import sql

MIDNIGHT = datetime(2026, 1, 31, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
GROW = {"by": 1048576}


class Clock:
    """What time it is, for everybody who has been given it."""

    def __init__(self, now: datetime = MIDNIGHT) -> None:
        self.now = now

    async def __call__(self, _: AsyncSession) -> datetime:
        return self.now


def a_starter(services: Services, clock: Clock) -> Starter:
    """Be one more replica's, on its own connections when it comes to it."""
    return Starter(services.database, services.queue, services.actions, clock=clock)


def a_service(services: Services, clock: Clock) -> ScheduleService:
    return ScheduleService(services.database, services.actions, clock=clock)


async def a_schedule(services: Services, clock: Clock, cron: str = "* * * * *", **members: Any) -> Schedule:
    wanted = NewSchedule(**({"name": "often", "cron": cron, "action": "bulk.expand", "params": GROW} | members))
    return await a_service(services, clock).create(wanted)


async def end_jobs(services: Services) -> None:
    """Let all jobs have succeeded."""
    await sql(
        services,
        "UPDATE jobs SET status = 'succeeded', started_at = now(), finished_at = now(), rung_at = NULL"
        " WHERE finished_at IS NULL",
    )


async def jobs_of(services: Services, schedule_id: UUID) -> list[datetime]:
    """For which times this schedule has jobs."""
    rows = await sql(
        services, "SELECT scheduled_for FROM jobs WHERE schedule_id = :id ORDER BY scheduled_for", id=schedule_id
    )
    return [row[0] for row in rows]


async def runs_of(services: Services, schedule_id: UUID) -> list[tuple[Any, ...]]:
    """What became of this schedule's times, oldest first: outcome, first and last time, how many."""
    rows = await sql(
        services,
        "SELECT outcome, scheduled_for, last_scheduled_for, count FROM schedule_runs WHERE schedule_id = :id"
        " ORDER BY scheduled_for",
        id=schedule_id,
    )
    return [tuple(row) for row in rows]
