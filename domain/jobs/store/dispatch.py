"""Queued jobs that are due for dispatch, and those whose message may be lost.

Takes a session, never commits. All times are PostgreSQL's, so that the workers' clocks do not matter.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Text, UpdateBase, Uuid, column, func, select, table, update
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.sql import from_now
from domain.jobs.model import Job, JobMessage, Worker, has_status, is_alive
from domain.jobs.states import JobStatus
from domain.storage.model import NODE_PREFIX, Backend, is_unserved

#: The ``error`` of a job that waits for a worker that serves its backend.
BACKEND_NOT_SERVED: Final = "backend-not-served"
#: The ``error`` of a job that waits for the agent of its node.
NODE_NOT_ALIVE: Final = "node-not-alive"
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

    async def still_queued(self, messages: Sequence[JobMessage]) -> Sequence[JobMessage]:
        """Return those of the messages that can still claim their job."""
        query = select(Job.id, Job.epoch).where(
            Job.id.in_([message.job_id for message in messages]), Job.status == JobStatus.QUEUED
        )
        queued = {(id_, epoch) for id_, epoch in await self._session.execute(query)}
        return [message for message in messages if (message.job_id, message.epoch) in queued]

    async def explain_waiting(self, limit: int, *, lease: float) -> Sequence[UUID]:
        """Write into queued jobs that no live process can do them, as their ``error``; return their ids.

        Either no worker serves their backend, or their node has no agent that is alive.
        """
        detail = func.concat("No worker serves the backend '", Job.backend, "'; the job waits until one does.")
        unserved = func.jsonb_build_object("code", BACKEND_NOT_SERVED, "detail", detail)
        detail = func.concat("The agent of the node '", _node_of_job(), "' is not alive; the job waits until it is.")
        not_alive = func.jsonb_build_object("code", NODE_NOT_ALIVE, "detail", detail)
        return [
            *await self._explain(_waiting_for_a_backend().limit(limit), unserved),
            *await self._explain(_waiting_for_a_node(lease).limit(limit), not_alive),
        ]

    async def _explain(self, waiting: Select[UUID], error: Any) -> Sequence[UUID]:
        query = (
            update(Job)
            .where(Job.id.in_(waiting.with_for_update(skip_locked=True, of=Job)))
            .values(error=error, version=Job.version + 1)
            .returning(Job.id)
        )
        return (await self._session.scalars(query.execution_options(synchronize_session=False))).all()

    async def _mark(self, query: UpdateBase) -> Sequence[JobMessage]:
        return [JobMessage(*row) for row in await self._session.execute(query)]


def any_unserved(lease: float) -> ColumnElement[bool]:
    """Return the condition that a job waits for a backend or a node without a live process, and does not say so.

    The agent of a node is alive for ``lease`` seconds after a heartbeat.
    """
    # Usually every backend is served, so that no job is read.
    for_backend = select(Backend.name).where(is_unserved()).exists() & _waiting_for_a_backend().exists()
    return for_backend | _waiting_for_a_node(lease).exists()


def _waiting_for_a_backend() -> Select[UUID]:
    unserved = select(Backend.name).where(is_unserved())
    return _waiting_untold(BACKEND_NOT_SERVED).where(Job.backend.in_(unserved))


def _waiting_for_a_node(lease: float) -> Select[UUID]:
    # The volume of such a job has an attachment on the node. So the few attachments lead to the jobs, by an index.
    attachments = table("attachments", column("volume_id", Uuid), column("node", Text))  # of a package above this one
    agent = select(Worker.id).where(Worker.node == attachments.c.node, is_alive(lease))
    of_job = (attachments.c.volume_id == Job.volume_id) & (Job.backend == func.concat(NODE_PREFIX, attachments.c.node))
    here = select(attachments.c.node).where(of_job, ~agent.exists())
    return _waiting_untold(NODE_NOT_ALIVE).where(here.exists())


def _waiting_untold(code: str) -> Select[UUID]:
    told = Job.error["code"].astext.is_not_distinct_from(code)
    return select(Job.id).where(has_status(JobStatus.QUEUED), Job.run_at < from_now(-_EXPLAIN_AFTER_SECONDS), ~told)


def _node_of_job() -> ColumnElement[str]:
    return func.substr(Job.backend, len(NODE_PREFIX) + 1)


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
