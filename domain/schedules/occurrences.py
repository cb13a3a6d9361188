"""Planning of a schedule's due times: at most one run is started, and the other times are recorded as missed."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from domain.errors import Invalid
from domain.schedules.cron import CronSchedule

#: A time found at most this late is on time, whatever the catch-up window: maintenance runs every few seconds, and cron
#: has no shorter interval.
ON_TIME: Final = timedelta(minutes=1)


@dataclass(frozen=True)
class Span:
    """``count`` consecutive times of a schedule, from ``first`` to ``last``."""

    first: datetime
    last: datetime
    count: int


@dataclass(frozen=True)
class PlannedRun:
    """The plan for all due times: those ``missed``, the one to ``run_at`` now, and the ``following`` one, due next."""

    missed: Span | None
    run_at: datetime | None
    following: datetime


def plan_run(cron: CronSchedule, first: datetime, *, now: datetime, window: timedelta) -> PlannedRun:
    """Plan all times due from ``first`` to ``now``: start the latest one if its catch-up window is still open."""
    previous = latest = first
    count = 1
    for time in cron.times(first):
        if time > now:
            if now - latest > max(window, ON_TIME):
                return PlannedRun(Span(first, latest, count), None, time)
            return PlannedRun(Span(first, previous, count - 1) if count > 1 else None, latest, time)
        previous, latest, count = latest, time, count + 1
    raise Invalid("`cron` is never due again.", field="cron")
