"""A day of three replicas with a schedule that is due every minute: each time is accounted for, and started once."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime

from domain.services import Services
from tests.integration.job_builders import sql
from tests.integration.schedule_builders import (
    HOUR,
    MIDNIGHT,
    MINUTE,
    Clock,
    a_schedule,
    a_starter,
    end_jobs,
    jobs_of,
    runs_of,
)

MINUTES = 1440


async def live_through_a_day(
    services: Services, *, down: Callable[[datetime], bool] = lambda _: False, jobs_last: int = 0
) -> Counter[str]:
    """Tick through a day, three replicas at once; jobs end after so many more ticks. Returns outcomes, by times."""
    clock = Clock()
    schedule = await a_schedule(services, clock)
    replicas = [a_starter(services, clock) for _ in range(3)]
    for minute in range(1, MINUTES + 1):
        clock.now = MIDNIGHT + minute * MINUTE
        if not down(clock.now):
            await asyncio.gather(*(replica.start_due() for replica in replicas))
            await require_one_at_a_time(services)
        if minute % (jobs_last + 1) == 0:
            await end_jobs(services)
    runs = await runs_of(services, schedule.id)
    started = [moment for outcome, moment, *_ in runs if outcome == "started"]
    assert await jobs_of(services, schedule.id) == started
    counted = Counter[str]()
    for outcome, _, __, count in runs:
        counted[outcome] += count
    return counted


async def require_one_at_a_time(services: Services) -> None:
    ((live,),) = await sql(services, "SELECT count(*) FROM jobs WHERE finished_at IS NULL")
    assert live <= 1


async def test_every_minute_of_a_day_is_started_once(services: Services) -> None:
    assert await live_through_a_day(services) == {"started": 1440}


async def test_three_hours_in_which_everything_is_down_cost_all_but_the_last_time(services: Services) -> None:
    def down(now: datetime) -> bool:
        return MIDNIGHT + 6 * HOUR < now < MIDNIGHT + 9 * HOUR

    assert await live_through_a_day(services, down=down) == {"started": 1261, "missed": 179}


async def test_jobs_that_outlast_a_minute_are_never_two_at_once(services: Services) -> None:
    assert await live_through_a_day(services, jobs_last=2) == {"started": 480, "skipped": 960}
