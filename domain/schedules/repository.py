"""Queries on the tables of schedules and runs, and the clock of schedules. Takes a session, never commits."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, literal, select, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from domain.db.base import find_owned
from domain.db.listing import load_short
from domain.errors import NameTaken, ScheduleNotFound
from domain.id_prefix import begins_with
from domain.jobs.store.retention import Pruned
from domain.schedules.model import Run, Schedule

#: Maximum number of runs pruned in one transaction.
_PRUNE_BATCH: Final = 1000

#: That of PostgreSQL, so that all replicas agree; tests pass another one.
Clock = Callable[[AsyncSession], Awaitable[datetime]]


async def postgresql_clock(session: AsyncSession) -> datetime:
    """Return the current time. Not the transaction's start time, because the transaction may have waited for a lock."""
    now: datetime = (await session.scalars(select(func.clock_timestamp()))).one()
    return now


@dataclass(frozen=True)
class ScheduleFilter:
    """Filters of a list of schedules; None matches any."""

    name: str | None = None
    id_prefix: str | None = None


class ScheduleRepository:
    """The table of schedules, within one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def save(self, schedule: Schedule) -> None:
        """Insert or update a schedule, and reload it with the values set by PostgreSQL.

        Raises:
            NameTaken: another schedule has the name.
        """
        name = schedule.name
        self._session.add(schedule)
        try:
            await self._session.flush()
        except IntegrityError as error:
            if "schedules_project_id_name_idx" in str(error.orig):
                raise NameTaken(f"There is already a schedule named {name!r}.", field="name") from error
            raise
        await self._session.refresh(schedule)

    async def get(self, schedule_id: UUID, project_id: UUID, *, for_update: bool = False) -> Schedule:
        """Read one schedule of a project; ``for_update`` locks it, so that it is neither changed nor started meanwhile.

        Raises:
            ScheduleNotFound: no such schedule.
        """
        schedule = await find_owned(self._session, Schedule, schedule_id, project_id, for_update=for_update)
        if schedule is None:
            raise ScheduleNotFound(schedule_id)
        return schedule

    async def page(
        self, filters: ScheduleFilter, project_id: UUID, *, before: UUID | None, limit: int
    ) -> Sequence[Schedule]:
        """Read up to ``limit`` + 1 schedules of a project, newest first, without long params."""
        query = select(Schedule).options(defer(Schedule.params)).order_by(Schedule.id.desc()).limit(limit + 1)
        query = query.where(Schedule.project_id == project_id)
        if filters.name is not None:
            query = query.where(Schedule.name == filters.name)
        if filters.id_prefix is not None:
            query = query.where(begins_with(Schedule.id, filters.id_prefix))
        if before is not None:
            query = query.where(Schedule.id < before)
        schedules = (await self._session.scalars(query)).all()
        await load_short(self._session, Schedule.params, schedules)
        return schedules

    async def due(self, now: datetime, actions: Collection[str]) -> Sequence[Schedule]:
        """Read the schedules that are due, the longest due first; only those whose actions this version has."""
        query = select(Schedule).where(Schedule.next_run_at <= now, Schedule.action.in_(actions))
        return (await self._session.scalars(query.order_by(Schedule.next_run_at))).all()

    async def lock_if_unchanged(self, due: Schedule) -> Schedule | None:
        """Lock a schedule; None if its timing changed since ``due`` was read, or if another worker has locked it."""
        query = select(Schedule).where(
            Schedule.id == due.id,
            Schedule.next_run_at == due.next_run_at,
            Schedule.cron == due.cron,
            Schedule.time_zone == due.time_zone,
            Schedule.catch_up_seconds == due.catch_up_seconds,
        )
        return (await self._session.scalars(query.with_for_update(skip_locked=True))).one_or_none()


def any_due(actions: Collection[str]) -> ColumnElement[bool]:
    """Return a condition that is true if a schedule is due whose action this version has."""
    return select(Schedule.id).where(Schedule.next_run_at <= func.now(), Schedule.action.in_(actions)).exists()


class RunRepository:
    """The table of runs, within one transaction. Runs are written only while their schedule is locked."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def latest(self, schedule_id: UUID) -> datetime | None:
        """Return the latest time that has a run; None if there is no run."""
        query = select(Run.last_scheduled_for).where(Run.schedule_id == schedule_id)
        return await self._session.scalar(query.order_by(Run.scheduled_for.desc()).limit(1))

    async def page(self, schedule_id: UUID, *, before: UUID | None, limit: int) -> Sequence[Run]:
        """Read up to ``limit`` + 1 runs, newest first; the extra one shows that there is a next page."""
        query = select(Run).where(Run.schedule_id == schedule_id).order_by(Run.id.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(Run.id < before)
        return (await self._session.scalars(query)).all()

    async def latest_of(self, schedule_ids: Collection[UUID], number: int) -> Mapping[UUID, Sequence[Run]]:
        """Read the last ``number`` runs of each of these schedules, newest first."""
        latest = select(Run.id).where(Run.schedule_id == Schedule.id).order_by(Run.id.desc()).limit(number).lateral()
        ids = select(latest.c.id).select_from(Schedule).join(latest, true()).where(Schedule.id.in_(schedule_ids))
        runs = await self._session.scalars(select(Run).where(Run.id.in_(ids)).order_by(Run.id.desc()))
        by_schedule = defaultdict[UUID, list[Run]](list)
        for run in runs:
            by_schedule[run.schedule_id].append(run)
        return by_schedule


async def prune_runs(session: AsyncSession, *, age: timedelta) -> Pruned:
    """Delete a batch of runs older than ``age``."""
    expired = (
        select(Run.id)
        .where(Run.created_at < func.now() - literal(age))
        .order_by(Run.created_at)
        .limit(_PRUNE_BATCH)
        .with_for_update(skip_locked=True)
    )
    query = delete(Run).where(Run.id.in_(expired)).returning(Run.id).execution_options(synchronize_session=False)
    rows = len((await session.scalars(query)).all())
    return Pruned(rows, more=rows == _PRUNE_BATCH)
