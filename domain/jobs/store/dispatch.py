"""Queued jobs that are due for dispatch, and those whose message may be lost.

Takes a session, never commits. All times are PostgreSQL's, so that the workers' clocks do not matter.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, UpdateBase, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.sql import from_now
from domain.jobs.model import Job, JobMessage
from domain.jobs.states import JobStatus
from domain.storage.model import Backend, is_unserved

#: The ``error`` of a job that waits for a worker that serves its backend.
BACKEND_NOT_SERVED: Final = "backend-not-served"
#: A job waits that long before its ``error`` says so: its worker may just be starting again.
_EXPLAIN_AFTER_SECONDS: Final = 5.0
_UNDISPATCHED: Final = Job.dispatched_at.is_(None)


class DispatchRepository:
    """Queued jobs and the time of their last dispatch, within one transaction.

    Only jobs of ``kinds`` are dispatched: workers of this version could not claim others, so a newer one does that.
    """

    def __init__(self, session: AsyncSession, kinds: Collection[str]) -> None:
        self._session = session
        self._kinds = tuple(kinds)

    async def mark_due(self, limit: int) -> Sequence[JobMessage]:
        """Mark due jobs that are not dispatched yet as dispatched now. Returns the messages to send."""
        return await self._mark(_due(limit, self._kinds))

    async def mark_dispatched_before(self, age: float, limit: int) -> Sequence[JobMessage]:
        """Mark jobs dispatched more than ``age`` seconds ago, oldest first, as dispatched now. Returns their messages.

        The caller must send those that Redis has lost again.
        """
        return await self._mark(_dispatched_before(age, limit, self._kinds))

    async def explain_waiting(self, limit: int) -> Sequence[UUID]:
        """Write into queued jobs that no worker serves their backend, as their ``error``; return their ids."""
        detail = func.concat("No worker serves the backend '", Job.backend, "'; the job waits until one does.")
        error = func.jsonb_build_object("code", BACKEND_NOT_SERVED, "detail", detail)
        query = (
            update(Job)
            .where(Job.id.in_(_waiting_for_a_backend().limit(limit).with_for_update(skip_locked=True)))
            .values(error=error, version=Job.version + 1)
            .returning(Job.id)
        )
        return (await self._session.scalars(query.execution_options(synchronize_session=False))).all()

    async def _mark(self, query: UpdateBase) -> Sequence[JobMessage]:
        return [JobMessage(*row) for row in await self._session.execute(query)]


def any_unserved() -> ColumnElement[bool]:
    """Return the condition that a job waits for a backend that no worker serves, and does not say so yet."""
    # Usually every backend is served, so that no job is read.
    return select(Backend.name).where(is_unserved()).exists() & _waiting_for_a_backend().exists()


def _waiting_for_a_backend() -> Select[UUID]:
    unserved = select(Backend.name).where(is_unserved())
    told = Job.error["code"].astext.is_not_distinct_from(BACKEND_NOT_SERVED)
    waiting = select(Job.id).where(Job.status == JobStatus.QUEUED, Job.backend.in_(unserved), ~told)
    return waiting.where(Job.run_at < from_now(-_EXPLAIN_AFTER_SECONDS))


def any_undispatched(kinds: Collection[str]) -> ColumnElement[bool]:
    """Return the condition that a job of these kinds is due and not dispatched yet."""
    return _any(_UNDISPATCHED, Job.run_at, tuple(kinds))


def any_dispatched_before(age: float, kinds: Collection[str]) -> ColumnElement[bool]:
    """Return the condition that a job of these kinds, dispatched more than ``age`` seconds ago, is still queued."""
    return _any(_dispatched_before_age(age), Job.dispatched_at, tuple(kinds))


# These run in every sweep, so they are built once.


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
        .returning(Job.id, Job.epoch, Job.backend, Job.project_id)
        .execution_options(synchronize_session=False)
    )


def _any(condition: ColumnElement[bool], order: Any, kinds: tuple[str, ...]) -> ColumnElement[bool]:
    """Use the query that selects such jobs, in the order of an index; with EXISTS, PostgreSQL may scan the table."""
    return _waiting(condition, order, kinds, 1).scalar_subquery().is_not(None)


def _waiting(condition: ColumnElement[bool], order: Any, kinds: tuple[str, ...], limit: int) -> Select[UUID]:
    query = select(Job.id).where(Job.status == JobStatus.QUEUED, Job.run_at <= func.now(), condition)
    return query.where(Job.kind.in_(kinds)).order_by(order).limit(limit)


def _dispatched_before_age(age: float) -> ColumnElement[bool]:
    return Job.dispatched_at < from_now(-age)
