"""When a cron expression is due in a time zone, exactly: also when the clocks change there.

An expression that names hours is due once for each time of day that it names: a time that the clocks leap over at the
end of the leap, one that comes twice the first time. (cronsim does so too, except where the minutes begin with a star.)
One that is for every hour is about moments instead: it is due whenever the clocks show what it says, so that every ten
minutes are every ten minutes, in a night of 23 hours as in one of 25.
"""

import functools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from domain.errors import Invalid

_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)
_HOURS: Final = 24
_FIELDS: Final = 5
_MAX_GAP: Final = 100


class CronSchedule:
    """The times of one cron expression (minute, hour, day of month, month, day of week) in one time zone."""

    def __init__(self, cron: str, time_zone: str) -> None:
        """Read them.

        Raises:
            Invalid: the expression cannot be read or is never due, or there is no such time zone.
        """
        if time_zone not in _time_zones():
            raise Invalid(f"There is no time zone named {time_zone[:_MAX_GAP]!r}.", field="time_zone")
        self._zone = ZoneInfo(time_zone)
        self._cron = cron
        self._every_hour = len(_parsed(cron).hours) == _HOURS

    def times(self, after: datetime) -> Iterator[datetime]:
        """All times after a moment, in UTC and in order."""
        return self._moments(after) if self._every_hour else self._times_of_day(after)

    def next(self, after: datetime) -> datetime:
        """The first time after a moment.

        Raises:
            Invalid: there is none, not within fifty years.
        """
        for moment in self.times(after):
            return moment
        raise Invalid("`cron` is never due.", field="cron")

    def _times_of_day(self, after: datetime) -> Iterator[datetime]:
        shown = after.astimezone(self._zone).replace(tzinfo=None)
        for time in CronSim(self._cron, shown):
            moment = self._first_shown(time)
            if moment > after:  # else it came twice, or was leapt over together with the one before
                yield moment
                after = moment

    def _first_shown(self, time: datetime) -> datetime:
        """When the clocks show a time for the first time; the end of the leap if they leap over it."""
        moment = time.replace(tzinfo=self._zone).astimezone(UTC)
        if moment.astimezone(self._zone).replace(tzinfo=None) == time:
            return moment
        before = time.replace(tzinfo=self._zone, fold=1).astimezone(UTC)
        return self._change(before, moment) or moment

    def _moments(self, after: datetime) -> Iterator[datetime]:
        """Go from one change of the clocks to the next: in between a time of day and a moment are the same."""
        begin = after.astimezone(UTC).replace(microsecond=0) + _SECOND
        change: datetime | None = begin
        while change is not None:
            begin, change = change, None
            offset = self._offset(begin)
            for time in CronSim(self._cron, (begin + offset - _SECOND).replace(tzinfo=None)):
                moment = time.replace(tzinfo=UTC) - offset
                change = self._change(begin, moment)
                if change is not None:
                    break
                yield moment
                begin = moment

    def _change(self, begin: datetime, end: datetime) -> datetime | None:
        """Find the first moment after ``begin``, and not after ``end``, from which on the clocks are set otherwise."""
        while begin < end:
            later = min(begin + _DAY, end)
            if self._offset(later) != self._offset(begin):
                return self._narrowed(begin, later)
            begin = later
        return None

    def _narrowed(self, before: datetime, after: datetime) -> datetime:
        while after - before > _SECOND:
            middle = (before + (after - before) / 2).replace(microsecond=0)
            if self._offset(middle) == self._offset(before):
                before = middle
            else:
                after = middle
        return after

    def _offset(self, moment: datetime) -> timedelta:
        return moment.astimezone(self._zone).utcoffset() or timedelta()


def _parsed(cron: str) -> CronSim:
    if len(cron) > _MAX_GAP or not cron.isascii() or len(cron.split()) != _FIELDS:
        raise Invalid("`cron` has five fields: minute, hour, day of month, month, day of week.", field="cron")
    try:
        return CronSim(cron, datetime(2000, 1, 1))  # noqa: DTZ001 (it reads the expression; no time is asked for)
    except CronSimError as error:
        raise Invalid(f"`cron` cannot be read, or is never due: {error}.", field="cron") from error


@functools.cache
def _time_zones() -> frozenset[str]:
    """Names that mean the same on every machine; reading the list takes a while."""
    return frozenset(available_timezones()) - {"localtime"}
