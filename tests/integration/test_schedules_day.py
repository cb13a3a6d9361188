"""Three replicas run a minutely schedule: every time has a run, and none is started twice.

`make test` simulates three hours, of which 20 minutes are an outage; ``CISTERN_TEST_LONG=1`` (`make test-long`) a day
with an outage of three hours. Each minute is a race of the three replicas: a day has more of them, but no other kind.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import pytest

from domain.errors import DatabaseUnavailable
from domain.schedules.runner import ScheduleRunner
from domain.services import Services
from tests.acceptance.scale import LONG
from tests.integration.job_builders import sql
from tests.integration.schedule_builders import (
    MIDNIGHT,
    MINUTE,
    Clock,
    a_schedule,
    a_schedule_runner,
    end_jobs,
    jobs_of,
    runs_of,
)

#: How long is simulated, and which of it is an outage, in minutes after midnight.
MINUTES, OUTAGE = (1440, range(360, 540)) if LONG else (180, range(60, 80))


async def simulate(
    services: Services, *, down: Callable[[datetime], bool] = lambda _: False, jobs_last: int = 0
) -> Counter[str]:
    """Simulate `MINUTES` with three concurrent replicas; return the number of times by outcome.

    ``down`` is true while all replicas are down; jobs end after ``jobs_last`` more minutes.
    """
    clock = Clock()
    schedule = await a_schedule(services, clock)
    replicas = [a_schedule_runner(services, clock) for _ in range(3)]
    for minute in range(1, MINUTES + 1):
        clock.now = MIDNIGHT + minute * MINUTE
        if not down(clock.now):
            await asyncio.gather(*(sweep(replica) for replica in replicas))
        ends = minute % (jobs_last + 1) == 0
        assert await (end_jobs(services) if ends else live_jobs(services)) <= 1
    runs = await runs_of(services, schedule.id)
    started = [time for outcome, time, *_ in runs if outcome == "started"]
    assert await jobs_of(services, schedule.id) == started
    counts = Counter[str]()
    for outcome, _, __, count in runs:
        counts[outcome] += count
    return counts


async def sweep(replica: ScheduleRunner) -> None:
    """Start what is due, as the maintenance of a worker does: after an outage of PostgreSQL it tries again."""
    while True:
        with suppress(DatabaseUnavailable):
            await replica.start_due()
            return


async def live_jobs(services: Services) -> int:
    ((live,),) = await sql(services, "SELECT count(*) FROM jobs WHERE finished_at IS NULL")
    return int(live)


@pytest.mark.slow
async def test_every_minute_is_started_once(services: Services) -> None:
    assert await simulate(services) == {"started": MINUTES}


async def test_downtime_misses_all_times_but_the_latest(services: Services) -> None:
    def down(now: datetime) -> bool:
        return MIDNIGHT + OUTAGE.start * MINUTE < now < MIDNIGHT + OUTAGE.stop * MINUTE

    missed = len(OUTAGE) - 1
    assert await simulate(services, down=down) == {"started": MINUTES - missed, "missed": missed}


async def test_runs_longer_than_the_interval_never_overlap(services: Services) -> None:
    assert await simulate(services, jobs_last=2) == {"started": MINUTES // 3, "skipped": MINUTES - MINUTES // 3}
