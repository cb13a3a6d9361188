"""What becomes of the times at which a schedule is due: one is started at most, and the others are accounted for."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from domain.errors import Invalid
from domain.schedules.cron import CronSchedule

#: Found so late, a time is still on time: the rounds of the workers take some seconds, and cron knows no shorter time.
PUNCTUAL: Final = timedelta(minutes=1)


@dataclass(frozen=True)
class Span:
    """``count`` times of a schedule, from ``first`` to ``last``."""

    first: datetime
    last: datetime
    count: int


@dataclass(frozen=True)
class PlannedRun:
    """What is due: what was missed, what is to be started; ``following`` is due next."""

    missed: Span | None
    start: datetime | None
    following: datetime


def plan_run(calendar: CronSchedule, first: datetime, *, now: datetime, window: timedelta) -> PlannedRun:
    """Look at all that is due from ``first`` to ``now``: the latest is started if its window is still open."""
    before = latest = first
    count = 1
    for moment in calendar.times(first):
        if moment > now:
            if now - latest > max(window, PUNCTUAL):
                return PlannedRun(Span(first, latest, count), None, moment)
            return PlannedRun(Span(first, before, count - 1) if count > 1 else None, latest, moment)
        before, latest, count = latest, moment, count + 1
    raise Invalid("`cron` is never due again.", field="cron")
