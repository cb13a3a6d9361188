"""What the pages of schedules show."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Final
from uuid import UUID

from api.dashboard.queries import ListQuery
from api.dashboard.views.overview import ScheduleLine
from domain.access.model import Principal
from domain.schedules.cron import CronSchedule
from domain.schedules.model import Run, Schedule
from domain.schedules.repository import ScheduleFilter
from domain.services import Services

_SHOWN_TIMES: Final = 5
_DAYS: Final = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_FIELDS: Final = 5


def cron_words(cron: str) -> str:
    """Return the most usual expressions in words, and any other as it is."""
    fields = cron.split()
    if len(fields) != _FIELDS:
        return cron
    minute, hour, day, month, weekday = fields
    if re.fullmatch(r"\*/\d+", minute) and (hour, day, month, weekday) == ("*",) * 4:
        return f"every {minute[2:]} minutes"
    if not minute.isdigit() or month != "*":
        return cron
    if (hour, day, weekday) == ("*",) * 3:
        return f"every hour, {minute} min past"
    if not hour.isdigit():
        return cron
    time = f"at {int(hour):02}:{int(minute):02}"
    if (day, weekday) == ("*", "*"):
        return f"every day {time}"
    if day == "*" and re.fullmatch(r"[0-7]", weekday):
        return f"every {_DAYS[int(weekday)]} {time}"
    if (day, weekday) == ("*", "1-5"):
        return f"from Monday to Friday {time}"
    if day.isdigit() and weekday == "*":
        return f"on day {day} of every month {time}"
    return cron


def next_times(cron: str, time_zone: str) -> Sequence[datetime]:
    """Return the next times of an expression.

    Raises:
        Invalid: as `CronSchedule`.
    """
    return list(islice(CronSchedule(cron, time_zone).times(datetime.now(UTC)), _SHOWN_TIMES))


@dataclass(frozen=True)
class SchedulePage:
    """One schedule, with its next times and its runs."""

    line: ScheduleLine
    schedule: Schedule
    next_times: Sequence[datetime]
    runs: Sequence[Run]
    next_cursor: str | None


async def schedules_of_query(
    services: Services, query: ListQuery, principal: Principal
) -> tuple[Sequence[ScheduleLine], str | None]:
    """Return the schedules on a page of the list, and the cursor of the next page.

    Raises:
        BadCursor: the cursor is not from this list.
    """
    project_id = principal.project.id
    request = query.page_of("schedules page", project_id)
    page, runs = await services.schedules.list_schedules(ScheduleFilter(), request, project_id=project_id)
    return [ScheduleLine.of(one, runs.get(one.id, ())) for one in page.items], page.next_cursor


async def schedule_page(services: Services, schedule_id: UUID, query: ListQuery, principal: Principal) -> SchedulePage:
    """Read what the page of a schedule shows.

    Raises:
        ScheduleNotFound: no such schedule.
        BadCursor: the cursor is not from the list of its runs.
    """
    project_id = principal.project.id
    schedule, last_runs = await services.schedules.get(schedule_id, project_id=project_id)
    request = query.page_of(f"runs page of {schedule_id}", project_id)
    page = await services.schedules.runs(schedule_id, request, project_id=project_id)
    times = next_times(schedule.cron, schedule.time_zone) if schedule.enabled else []
    return SchedulePage(ScheduleLine.of(schedule, last_runs), schedule, times, page.items, page.next_cursor)
