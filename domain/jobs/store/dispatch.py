"""What housekeeping asks of the job table about jobs that wait: whom to ring, and whose message may be lost.

Takes a session, never commits. All times are PostgreSQL's, so that the clocks of the workers do not matter.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, UpdateBase, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.sql import from_now
from domain.jobs.model import Dispatch, Job
from domain.jobs.states import JobStatus

_UNDISPATCHED: Final = Job.dispatched_at.is_(None)


class DispatchRepository:
    """Queued jobs and when they were rung, seen from one transaction.

    ``kinds``: those that this version knows. Others are left to a newer one, for here nobody could claim them.
    """

    def __init__(self, session: AsyncSession, kinds: Collection[str]) -> None:
        self._session = session
        self._kinds = tuple(kinds)

    async def mark_due(self, limit: int) -> Sequence[Dispatch]:
        """Take queued jobs whose time has come and that have not been rung, and note that they are being rung."""
        return await self._mark(_due(limit, self._kinds))

    async def mark_dispatched_before(self, age: float, limit: int) -> Sequence[Dispatch]:
        """Take queued jobs that were rung over ``age`` seconds ago, longest ago first, and note them as seen now."""
        return await self._mark(_dispatched_before(age, limit, self._kinds))

    async def _mark(self, query: UpdateBase) -> Sequence[Dispatch]:
        return [Dispatch(*row) for row in await self._session.execute(query)]


def any_undispatched(kinds: Collection[str]) -> ColumnElement[bool]:
    """Whether there is a job of these kinds whose time has come and that has not been rung."""
    return _any(_UNDISPATCHED, Job.run_at, tuple(kinds))


def any_dispatched_before(age: float, kinds: Collection[str]) -> ColumnElement[bool]:
    """Whether there is a job of these kinds that was rung over ``age`` seconds ago, and still waits."""
    return _any(_dispatched_before_age(age), Job.dispatched_at, tuple(kinds))


# These are asked again and again: they are put together once.


@lru_cache
def _due(limit: int, kinds: tuple[str, ...]) -> UpdateBase:
    return _marking_dispatched(_waiting(_UNDISPATCHED, Job.run_at, kinds, limit))


@lru_cache
def _dispatched_before(age: float, limit: int, kinds: tuple[str, ...]) -> UpdateBase:
    return _marking_dispatched(_waiting(_dispatched_before_age(age), Job.dispatched_at, kinds, limit))


def _marking_dispatched(waiting: Select[UUID]) -> UpdateBase:
    return (
        update(Job)
        .where(Job.id.in_(waiting.with_for_update(skip_locked=True)))
        .values(dispatched_at=func.now())
        .returning(Job.id, Job.epoch)
        .execution_options(synchronize_session=False)
    )


def _any(condition: ColumnElement[bool], order: Any, kinds: tuple[str, ...]) -> ColumnElement[bool]:
    """Look as whoever takes them does, in the order of an index: EXISTS may read the table instead."""
    return _waiting(condition, order, kinds, 1).scalar_subquery().is_not(None)


def _waiting(condition: ColumnElement[bool], order: Any, kinds: tuple[str, ...], limit: int) -> Select[UUID]:
    query = select(Job.id).where(Job.status == JobStatus.QUEUED, Job.run_at <= func.now(), condition)
    return query.where(Job.kind.in_(kinds)).order_by(order).limit(limit)


def _dispatched_before_age(age: float) -> ColumnElement[bool]:
    return Job.dispatched_at < from_now(-age)
