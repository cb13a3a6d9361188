"""Builders and readers of schedules, over HTTP or by the service, with replicas whose clock the test sets."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncSession

from domain.access.service import may_own_schedules
from domain.schedules.model import Schedule
from domain.schedules.runner import ScheduleRunner
from domain.schedules.service import NewSchedule, ScheduleService
from domain.services import Services
from tests.integration.job_builders import sql

MIDNIGHT = datetime(2026, 1, 31, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
GROW = {"by": 1048576}
SCHEDULES = "/api/v1/schedules"
NIGHTLY: dict[str, Any] = {
    "name": "nightly",
    "cron": "30 2 * * *",
    "time_zone": "Europe/Berlin",
    "action": "bulk.expand",
    "params": {"percent": 20, "usage_above": 80, "up_to": "1TiB"},
}


class Clock:
    """A settable clock, shared by several replicas."""

    def __init__(self, now: datetime = MIDNIGHT) -> None:
        self.now = now

    async def __call__(self, _: AsyncSession) -> datetime:
        return self.now


def a_schedule_runner(services: Services, clock: Clock) -> ScheduleRunner:
    """The runner of one more replica."""
    return ScheduleRunner(services.database, services.queue, services.actions, may_own=may_own_schedules, clock=clock)


def a_service(services: Services, clock: Clock) -> ScheduleService:
    return ScheduleService(services.database, services.actions, clock=clock)


async def a_schedule(services: Services, clock: Clock, cron: str = "* * * * *", **members: Any) -> Schedule:
    new = NewSchedule(**({"name": "often", "cron": cron, "action": "bulk.expand", "params": GROW} | members))
    return await a_service(services, clock).create(new)


async def made(client: httpx.AsyncClient, **members: Any) -> dict[str, Any]:
    answer = await client.post(SCHEDULES, json=NIGHTLY | members)
    assert answer.status_code == 201, answer.text
    schedule: dict[str, Any] = answer.json()
    return schedule


async def end_jobs(services: Services) -> int:
    """Mark all live jobs as succeeded, and return their number."""
    ended = await sql(
        services,
        "UPDATE jobs SET status = 'succeeded', started_at = now(), finished_at = now(), dispatched_at = NULL"
        " WHERE finished_at IS NULL RETURNING id",
    )
    return len(ended)


async def jobs_of(services: Services, schedule_id: UUID) -> list[datetime]:
    """The times for which this schedule has jobs."""
    rows = await sql(
        services, "SELECT scheduled_for FROM jobs WHERE schedule_id = :id ORDER BY scheduled_for", id=schedule_id
    )
    return [row[0] for row in rows]


async def runs_of(services: Services, schedule_id: UUID) -> list[tuple[Any, ...]]:
    """The runs of a schedule, oldest first: outcome, first and last time, count."""
    rows = await sql(
        services,
        "SELECT outcome, scheduled_for, last_scheduled_for, count FROM schedule_runs WHERE schedule_id = :id"
        " ORDER BY scheduled_for",
        id=schedule_id,
    )
    return [tuple(row) for row in rows]


async def schedules_and_jobs(services: Services) -> list[Row[Any]]:
    """All rows of schedules and jobs, to compare before and after."""
    return [*await sql(services, "SELECT * FROM schedules"), *await sql(services, "SELECT * FROM jobs")]
