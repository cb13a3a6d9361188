"""Every question that is asked of the tables of schedules and runs, by name. Takes a session, never commits."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, literal, select, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from domain.errors import NameTaken, ScheduleNotFound
from domain.jobs.store.retention import Pruned
from domain.schedules.model import Run, Schedule

#: Rows in one transaction.
_RUNS: Final = 1000


class ScheduleRepository:
    """The table of schedules, seen from one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def save(self, schedule: Schedule) -> None:
        """Write a schedule down, new or changed, and read what PostgreSQL has made of it.

        Raises:
            NameTaken: another schedule has its name.
        """
        name = schedule.name
        self._session.add(schedule)
        try:
            await self._session.flush()
        except IntegrityError as error:
            if "schedules_name_key" in str(error.orig):
                raise NameTaken(f"There is already a schedule named {name!r}.", field="name") from error
            raise
        await self._session.refresh(schedule)

    async def get(self, schedule_id: UUID) -> Schedule:
        """Read one schedule.

        Raises:
            ScheduleNotFound: there is none.
        """
        return _found(await self._session.get(Schedule, schedule_id), schedule_id)

    async def lock(self, schedule_id: UUID) -> Schedule:
        """Read one schedule and keep others from changing it, and from starting it.

        Raises:
            ScheduleNotFound: there is none.
        """
        locked = await self._session.get(Schedule, schedule_id, with_for_update=True, populate_existing=True)
        return _found(locked, schedule_id)

    async def page(self, name: str | None, *, before: UUID | None, limit: int) -> Sequence[Schedule]:
        """Read ``limit`` schedules and one more, newest first."""
        query = select(Schedule).order_by(Schedule.id.desc()).limit(limit + 1)
        if name is not None:
            query = query.where(Schedule.name == name)
        if before is not None:
            query = query.where(Schedule.id < before)
        return (await self._session.scalars(query)).all()

    async def due(self, now: datetime, actions: Collection[str]) -> Sequence[Schedule]:
        """Find the schedules that are due, of those whose actions this version knows; longest due first."""
        query = select(Schedule).where(Schedule.next_run_at <= now, Schedule.action.in_(actions))
        return (await self._session.scalars(query.order_by(Schedule.next_run_at))).all()

    async def lock_if_unchanged(self, seen: Schedule) -> Schedule | None:
        """Lock a schedule if it is still due as it was seen, and nobody else is at it."""
        query = select(Schedule).where(
            Schedule.id == seen.id,
            Schedule.next_run_at == seen.next_run_at,
            Schedule.cron == seen.cron,
            Schedule.time_zone == seen.time_zone,
            Schedule.catch_up_seconds == seen.catch_up_seconds,
        )
        return (await self._session.scalars(query.with_for_update(skip_locked=True))).one_or_none()

    async def remove(self, schedule: Schedule) -> None:
        """Strike a schedule off, with its runs; its jobs stay."""
        await self._session.delete(schedule)
        await self._session.flush()


def any_due(actions: Collection[str]) -> ColumnElement[bool]:
    """Whether a schedule is due, of those whose actions this version knows."""
    return select(Schedule.id).where(Schedule.next_run_at <= func.now(), Schedule.action.in_(actions)).exists()


class RunRepository:
    """What became of the times of schedules, seen from one transaction. Whoever writes has the schedule locked."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def latest(self, schedule_id: UUID) -> datetime | None:
        """Tell for which time there is an entry already, and for none after it."""
        query = select(Run.last_scheduled_for).where(Run.schedule_id == schedule_id)
        return await self._session.scalar(query.order_by(Run.scheduled_for.desc()).limit(1))

    async def page(self, schedule_id: UUID, *, before: UUID | None, limit: int) -> Sequence[Run]:
        """Read ``limit`` runs and one more, newest first."""
        query = select(Run).where(Run.schedule_id == schedule_id).order_by(Run.id.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(Run.id < before)
        return (await self._session.scalars(query)).all()

    async def latest_of(self, schedule_ids: Collection[UUID], number: int) -> Mapping[UUID, Sequence[Run]]:
        """Read the last runs of each of these schedules, newest first."""
        of_one = select(Run.id).where(Run.schedule_id == Schedule.id).order_by(Run.id.desc()).limit(number).lateral()
        ids = select(of_one.c.id).select_from(Schedule).join(of_one, true()).where(Schedule.id.in_(schedule_ids))
        runs = await self._session.scalars(select(Run).where(Run.id.in_(ids)).order_by(Run.id.desc()))
        found = defaultdict[UUID, list[Run]](list)
        for run in runs:
            found[run.schedule_id].append(run)
        return found


async def prune_runs(session: AsyncSession, *, age: timedelta) -> Pruned:
    """Forget some runs that were written down longer ago than ``age``."""
    expired = (
        select(Run.id)
        .where(Run.created_at < func.now() - literal(age))
        .order_by(Run.created_at)
        .limit(_RUNS)
        .with_for_update(skip_locked=True)
    )
    deleting = delete(Run).where(Run.id.in_(expired)).returning(Run.id).execution_options(synchronize_session=False)
    rows = len((await session.scalars(deleting)).all())
    return Pruned(rows, more=rows == _RUNS)


def _found(schedule: Schedule | None, schedule_id: UUID) -> Schedule:
    if schedule is None:
        raise ScheduleNotFound(schedule_id)
    return schedule
