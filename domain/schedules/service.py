"""The operations of users on schedules: create, read, change, pause and delete; `runner` has "run now"."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.audit.model import NOBODY, Actor, new_entry
from domain.audit.repository import add_entries
from domain.db.database import Database
from domain.db.pagination import Page, PageRequest
from domain.errors import Invalid
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin, accepting
from domain.schedules.actions import Actions, Params
from domain.schedules.last_runs import LastRun, read_last_runs
from domain.schedules.model import CATCH_UP_SECONDS, Run, Schedule
from domain.schedules.repository import Clock, RunRepository, ScheduleFilter, ScheduleRepository, postgresql_clock

_RECENT_RUNS: Final = 5

LastRuns = Mapping[UUID, Sequence[Run]]


@dataclass(frozen=True)
class NewSchedule:
    """A request for a new schedule."""

    name: str
    cron: str
    action: str
    params: Params
    time_zone: str = "UTC"
    enabled: bool = True
    catch_up_seconds: int = CATCH_UP_SECONDS


class ScheduleService:
    """The operations on schedules, for the API."""

    def __init__(self, database: Database, actions: Actions, *, clock: Clock = postgresql_clock) -> None:
        self._database = database
        self._actions = actions
        self._clock = clock

    async def create(self, new: NewSchedule, *, origin: RequestOrigin = ANONYMOUS) -> Schedule:
        """Create a schedule.

        Raises:
            Invalid: its cron expression, time zone, action or parameters are invalid.
            NameTaken: another schedule has the name.
        """
        schedule = Schedule(id=uuid7(), project_id=origin.actor.project_id, owner=origin.caller, **vars(new))
        self._check_params(schedule)
        async with accepting(self._database, origin) as accepted:
            next_run_at = schedule.calendar.next(await self._clock(accepted.session))
            schedule.next_run_at = next_run_at if schedule.enabled else None
            await ScheduleRepository(accepted.session).save(schedule)
            accepted.entity = schedule
            await _record(accepted.session, "schedule.create", schedule, origin.actor)
        return schedule

    async def get(self, schedule_id: UUID, *, project_id: UUID) -> tuple[Schedule, Sequence[Run]]:
        """Read one schedule of a project and its last runs.

        Raises:
            ScheduleNotFound: no such schedule.
        """
        async with self._database.transaction() as session:
            schedule = await ScheduleRepository(session).get(schedule_id, project_id)
            return schedule, await _last_runs(session, schedule)

    async def list_schedules(
        self, filters: ScheduleFilter, request: PageRequest, *, project_id: UUID
    ) -> tuple[Page[Schedule], LastRuns]:
        """List the schedules of a project, newest first, with the last runs of each.

        Raises:
            BadCursor: the cursor belongs to another list.
        """
        before = request.before
        async with self._database.transaction() as session:
            schedules = ScheduleRepository(session)
            page = request.page(await schedules.page(filters, project_id, before=before, limit=request.limit))
            return page, await RunRepository(session).latest_of([schedule.id for schedule in page.items], _RECENT_RUNS)

    async def runs(self, schedule_id: UUID, request: PageRequest, *, project_id: UUID) -> Page[Run]:
        """List the runs of a schedule of a project, newest first.

        Raises:
            ScheduleNotFound: no such schedule.
            BadCursor: the cursor belongs to another list.
        """
        before = request.before
        async with self._database.transaction() as session:
            await ScheduleRepository(session).get(schedule_id, project_id)
            return request.page(await RunRepository(session).page(schedule_id, before=before, limit=request.limit))

    async def change(
        self,
        schedule_id: UUID,
        changes: Mapping[str, Any],
        *,
        check: Callable[[Schedule, Sequence[Run]], None] = lambda *_: None,
        actor: Actor = NOBODY,
    ) -> tuple[Schedule, Sequence[Run]]:
        """Change the members named in ``changes``, and check only those. Who changes it becomes its owner.

        A schedule whose parameters have become invalid can therefore still be paused. If the timing changes, due times
        of the old timing that have not been started are dropped. ``check`` may refuse the locked row and its last runs
        by an error, which is raised here; nothing is changed then.

        Raises:
            ScheduleNotFound: no such schedule.
            Invalid: the new cron expression, time zone or parameters are invalid.
            NameTaken: another schedule has the new name.
        """
        async with self._database.transaction() as session:
            schedules = ScheduleRepository(session)
            schedule = await schedules.get(schedule_id, actor.project_id, for_update=True)
            check(schedule, await _last_runs(session, schedule))
            # A schedule with new timing is due next after now: times while it was paused are not missed. But not before
            # the latest time that has a run: no time is run twice, even if PostgreSQL's clock has stepped back since.
            now = await self._clock(session)
            after = max(now, await RunRepository(session).latest(schedule_id) or now)
            timing = _timing(schedule)
            for name, value in {**changes, "owner": actor.name}.items():
                setattr(schedule, name, value)
            if "params" in changes:
                self._check_params(schedule)
            if changes.keys() & {"cron", "time_zone"}:
                schedule.calendar.next(after)  # checked for a paused schedule too
            if _timing(schedule) != timing:
                schedule.next_run_at = schedule.calendar.next(after) if schedule.enabled else None
            schedule.updated_at = func.now()
            await schedules.save(schedule)
            await _record(session, "schedule.update", schedule, actor, members=sorted(changes))
            return schedule, await _last_runs(session, schedule)

    async def last_runs(self) -> Sequence[LastRun]:
        """Return how the last run of each schedule of any project went, for monitoring."""
        async with self._database.transaction() as session:
            return await read_last_runs(session)

    async def delete(self, schedule_id: UUID, *, actor: Actor = NOBODY) -> None:
        """Delete a schedule and its runs; its jobs continue.

        Raises:
            ScheduleNotFound: no such schedule.
        """
        async with self._database.transaction() as session:
            schedule = await ScheduleRepository(session).get(schedule_id, actor.project_id, for_update=True)
            await session.delete(schedule)
            await _record(session, "schedule.delete", schedule, actor)

    def _check_params(self, schedule: Schedule) -> None:
        if schedule.action not in self._actions:
            known = ", ".join(f"`{action}`" for action in sorted(self._actions))
            raise Invalid(f"There is no action named {schedule.action!r}; there are {known}.", field="action")
        try:
            self._actions[schedule.action].check(schedule.params)
        except Invalid as error:
            error.details["field"] = f"params.{error.details['field']}"
            raise


async def _record(session: AsyncSession, action: str, schedule: Schedule, actor: Actor, **details: Any) -> None:
    entry = new_entry(actor, action, subject_id=schedule.id, subject_name=schedule.name, details=details or None)
    await add_entries(session, [entry])


def _timing(schedule: Schedule) -> tuple[str, str, bool]:
    """Return the members that determine when the schedule is due next."""
    return schedule.cron, schedule.time_zone, schedule.enabled


async def _last_runs(session: AsyncSession, schedule: Schedule) -> Sequence[Run]:
    return (await RunRepository(session).latest_of([schedule.id], _RECENT_RUNS)).get(schedule.id, ())
