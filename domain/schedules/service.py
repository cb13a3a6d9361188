"""What users do with schedules, beside running them: make, look, change, pause, delete."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.db.database import Database
from domain.db.pagination import Page, PageRequest
from domain.errors import Invalid
from domain.jobs.idempotency import ANONYMOUS, RequestOrigin, idempotent_transaction
from domain.schedules.actions import Actions, Params
from domain.schedules.clock import Clock, postgresql_clock
from domain.schedules.cron import CronSchedule
from domain.schedules.model import CATCH_UP_SECONDS, Run, Schedule
from domain.schedules.repository import RunRepository, ScheduleRepository

_RECENT_RUNS: Final = 5

LastRuns = Mapping[UUID, Sequence[Run]]


@dataclass(frozen=True)
class NewSchedule:
    """What a user asks for."""

    name: str
    cron: str
    action: str
    params: Params
    time_zone: str = "UTC"
    enabled: bool = True
    catch_up_seconds: int = CATCH_UP_SECONDS


class ScheduleService:
    """Schedules as their users see them."""

    def __init__(self, database: Database, actions: Actions, *, clock: Clock = postgresql_clock) -> None:
        self._database = database
        self._actions = actions
        self._clock = clock

    async def create(self, wanted: NewSchedule, *, origin: RequestOrigin = ANONYMOUS) -> Schedule:
        """Make a schedule.

        Raises:
            Invalid: its times, its action or what it asks for make no sense.
            NameTaken: another schedule has the name.
        """
        schedule = Schedule(id=uuid7(), **vars(wanted))
        self._check_params(schedule)
        async with idempotent_transaction(self._database, origin) as acceptance:
            next_run_at = _calendar(schedule).next(await self._clock(acceptance.session))
            schedule.next_run_at = next_run_at if schedule.enabled else None
            await ScheduleRepository(acceptance.session).save(schedule)
            acceptance.made = schedule
        return schedule

    async def get(self, schedule_id: UUID) -> tuple[Schedule, Sequence[Run]]:
        """Read one schedule, with its last runs.

        Raises:
            ScheduleNotFound: there is none.
        """
        async with self._database.transaction() as session:
            schedule = await ScheduleRepository(session).get(schedule_id)
            return schedule, await _last_runs(session, schedule)

    async def list_schedules(self, name: str | None, request: PageRequest) -> tuple[Page[Schedule], LastRuns]:
        """List schedules, newest first, and the last runs of each.

        Raises:
            BadCursor: the cursor is not from this list.
        """
        before = request.before
        async with self._database.transaction() as session:
            page = request.page(await ScheduleRepository(session).page(name, before=before, limit=request.limit))
            return page, await RunRepository(session).latest_of([schedule.id for schedule in page.items], _RECENT_RUNS)

    async def runs(self, schedule_id: UUID, request: PageRequest) -> Page[Run]:
        """List a schedule's runs, newest first.

        Raises:
            ScheduleNotFound: there is no such schedule.
            BadCursor: the cursor is not from this list.
        """
        before = request.before
        async with self._database.transaction() as session:
            await ScheduleRepository(session).get(schedule_id)
            return request.page(await RunRepository(session).page(schedule_id, before=before, limit=request.limit))

    async def change(self, schedule_id: UUID, changes: Mapping[str, Any]) -> tuple[Schedule, Sequence[Run]]:
        """Change what ``changes`` names, and look at nothing else: a schedule that cannot run any more can be paused.

        What it was due for by its old times, and nobody has started yet, it is not due for any more.

        Raises:
            ScheduleNotFound: there is none.
            Invalid: its times or what it asks for would make no sense.
            NameTaken: another schedule has the new name.
        """
        async with self._database.transaction() as session:
            schedules = ScheduleRepository(session)
            schedule = await schedules.lock(schedule_id)
            after = await self._reference_time(session, schedule_id)
            timing = _timing(schedule)
            for name, value in changes.items():
                setattr(schedule, name, value)
            if "params" in changes:
                self._check_params(schedule)
            if changes.keys() & {"cron", "time_zone"}:
                _calendar(schedule).next(after)  # the times of a paused schedule must make sense too
            if _timing(schedule) != timing:
                schedule.next_run_at = _calendar(schedule).next(after) if schedule.enabled else None
            schedule.updated_at = func.now()
            await schedules.save(schedule)
            return schedule, await _last_runs(session, schedule)

    async def delete(self, schedule_id: UUID) -> None:
        """Strike a schedule off, with the list of its runs; a job that it has started goes on.

        Raises:
            ScheduleNotFound: there is none.
        """
        async with self._database.transaction() as session:
            schedules = ScheduleRepository(session)
            await schedules.remove(await schedules.lock(schedule_id))

    def _check_params(self, schedule: Schedule) -> None:
        if schedule.action not in self._actions:
            known = ", ".join(f"`{action}`" for action in sorted(self._actions))
            raise Invalid(f"There is no action named {schedule.action!r}; there are {known}.", field="action")
        try:
            self._actions[schedule.action].check(schedule.params)
        except Invalid as error:
            error.details["field"] = f"params.{error.details['field']}"
            raise

    async def _reference_time(self, session: AsyncSession, schedule_id: UUID) -> datetime:
        """From now on: what a schedule would have been due for while it was paused is not missed.

        But no time has its turn twice, not even when PostgreSQL's clock has stepped back since.
        """
        now = await self._clock(session)
        latest = await RunRepository(session).latest(schedule_id)
        return max(now, latest or now)


def _calendar(schedule: Schedule) -> CronSchedule:
    return CronSchedule(schedule.cron, schedule.time_zone)


def _timing(schedule: Schedule) -> tuple[str, str, bool]:
    """What decides when it is due next."""
    return schedule.cron, schedule.time_zone, schedule.enabled


async def _last_runs(session: AsyncSession, schedule: Schedule) -> Sequence[Run]:
    return (await RunRepository(session).latest_of([schedule.id], _RECENT_RUNS)).get(schedule.id, ())
