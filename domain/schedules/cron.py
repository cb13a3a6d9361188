"""The times of a cron expression in a time zone, exact across changes to and from daylight saving time.

1. An expression that names hours is due once per named time of day. A local time skipped by a clock change is due at
   the end of the gap; a local time that occurs twice is due the first time. (cronsim does the same, except where the
   minutes begin with a star.)
2. An expression for every hour is due whenever the local clock shows a matching time. Every ten minutes therefore stays
   every ten minutes, on days of 23 and of 25 hours.

Of the times that are due, at most one is started, and the others are recorded as missed.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from domain.errors import Invalid

_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)
_HOURS: Final = 24
#: The fields of an expression, and how many values each has.
_RANGES: Final = {"minute": 60, "hour": 24, "day": 31, "month": 12, "weekday": 7}
_NEXT_LARGER: Final = {"minute": "hour", "hour": "day", "day": "month", "month": "year", "weekday": "week"}
#: Maximum length of a cron expression, and of a time zone quoted in an error message.
_MAX_LENGTH: Final = 100
#: A time found at most this late is on time, whatever the catch-up window: maintenance runs every few seconds, and cron
#: has no shorter interval.
_ON_TIME: Final = timedelta(minutes=1)


class CronSchedule:
    """The times of one cron expression (minute, hour, day of month, month, day of week) in one time zone."""

    def __init__(self, cron: str, time_zone: str) -> None:
        """Parse the expression.

        Raises:
            Invalid: the expression is malformed or never due, or the time zone is unknown.
        """
        if time_zone not in _time_zones():
            raise Invalid(f"There is no time zone named {time_zone[:_MAX_LENGTH]!r}.", field="time_zone")
        self._zone = ZoneInfo(time_zone)
        self._cron = cron
        self._every_hour = len(_parse(cron).hours) == _HOURS

    def times(self, after: datetime) -> Iterator[datetime]:
        """Yield all times after ``after``, in UTC and in order."""
        return self._times_every_hour(after) if self._every_hour else self._times_of_day(after)

    def next(self, after: datetime) -> datetime:
        """Return the first time after ``after``.

        Raises:
            Invalid: there is none within fifty years.
        """
        for time in self.times(after):
            return time
        raise Invalid("`cron` is never due.", field="cron")

    def _times_of_day(self, after: datetime) -> Iterator[datetime]:
        """Case 1: convert each local time of the expression to UTC, and drop duplicates."""
        for local in CronSim(self._cron, after.astimezone(self._zone).replace(tzinfo=None)):
            time = self._first_occurrence(local)
            if time > after:  # else it is the second occurrence, or was skipped by the same gap as the previous one
                yield time
                after = time

    def _first_occurrence(self, local: datetime) -> datetime:
        """Return the first time at which clocks show ``local``; the end of the gap if they skip it."""
        time = local.replace(tzinfo=self._zone).astimezone(UTC)
        if time.astimezone(self._zone).replace(tzinfo=None) == local:
            return time
        before = local.replace(tzinfo=self._zone, fold=1).astimezone(UTC)
        return self._offset_change(before, time) or time

    def _times_every_hour(self, after: datetime) -> Iterator[datetime]:
        """Case 2: proceed from one clock change to the next; in between, local time has a constant offset."""
        begin = after.astimezone(UTC).replace(microsecond=0) + _SECOND
        change: datetime | None = begin
        while change is not None:
            begin, change = change, None
            offset = self._offset(begin)
            for local in CronSim(self._cron, (begin + offset - _SECOND).replace(tzinfo=None)):
                time = local.replace(tzinfo=UTC) - offset
                change = self._offset_change(begin, time)
                if change is not None:
                    break
                yield time
                begin = time

    def _offset_change(self, begin: datetime, end: datetime) -> datetime | None:
        """Return the first time after ``begin``, and up to ``end``, with another UTC offset; None if there is none."""
        while begin < end:
            later = min(begin + _DAY, end)
            if self._offset(later) != self._offset(begin):
                return self._bisect_change(begin, later)
            begin = later
        return None

    def _bisect_change(self, before: datetime, after: datetime) -> datetime:
        while after - before > _SECOND:
            middle = (before + (after - before) / 2).replace(microsecond=0)
            if self._offset(middle) == self._offset(before):
                before = middle
            else:
                after = middle
        return after

    def _offset(self, time: datetime) -> timedelta:
        return time.astimezone(self._zone).utcoffset() or timedelta()


def _parse(cron: str) -> CronSim:
    if len(cron) > _MAX_LENGTH or not cron.isascii() or len(cron.split()) != len(_RANGES):
        raise Invalid("`cron` must have five fields: minute, hour, day of month, month, day of week.", field="cron")
    _require_possible_steps(cron)
    try:
        return CronSim(cron, datetime(2000, 1, 1))  # noqa: DTZ001 (only parses the expression; the time is not used)
    except CronSimError as error:
        raise Invalid(f"`cron` is malformed or never due: {error}.", field="cron") from error


def _require_possible_steps(cron: str) -> None:
    """Refuse a step that is as long as its range or longer, such as ``*/90`` or ``10-20/30`` for the minutes.

    It would be due once per range only: every hour, at minute 0 or 10.

    Raises:
        Invalid: says what to write instead.
    """
    for text, (name, values) in zip(cron.split(), _RANGES.items(), strict=True):
        for part in text.split(","):
            range_, _, step = part.partition("/")
            first, _, last = range_.partition("-")
            number = int(last) - int(first) + 1 if first.isdecimal() and last.isdecimal() else values
            if step.isdecimal() and int(step) >= number > 0:
                raise Invalid(
                    f"`cron` has a step of {step} {name}s, but only {number} of them: a step starts again with each"
                    f" {_NEXT_LARGER[name]}. Write down the times, or use several schedules.",
                    field="cron",
                )


@dataclass(frozen=True)
class Span:
    """``count`` consecutive times of a schedule, from ``first`` to ``last``."""

    first: datetime
    last: datetime
    count: int = 1


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
            if now - latest > max(window, _ON_TIME):
                return PlannedRun(Span(first, latest, count), None, time)
            return PlannedRun(Span(first, previous, count - 1) if count > 1 else None, latest, time)
        previous, latest, count = latest, time, count + 1
    raise Invalid("`cron` is never due again.", field="cron")


@functools.cache
def _time_zones() -> frozenset[str]:
    """Return the names that mean the same on every machine. Cached, since reading the list is slow."""
    return frozenset(available_timezones()) - {"localtime"}
