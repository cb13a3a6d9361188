"""Bulk jobs in the job table: a parent, which has no lease once it is planned, and its children, the lanes.

Takes a session, never commits. The parent's row is always locked last.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from domain.db.sql import from_now
from domain.jobs.model import Job
from domain.jobs.states import LIVE, JobStatus
from domain.jobs.store import statements
from domain.jobs.webhooks.outbox import record_ended_jobs

#: Seconds until the next try of a parent that could not be given new lanes; others are processed meanwhile.
_DEFER_SECONDS: Final = 60.0


class ParentRepository:
    """Parents and lanes, within one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def lock_held(self, job_id: UUID, *, epoch: int, worker_id: UUID | None) -> bool:
        """Lock the job's row if this attempt still holds it, so that no other attempt records anything meanwhile."""
        params = {"id": job_id, "epoch": epoch, "worker_id": worker_id}
        return await self._session.scalar(statements.LOCK_HELD, params) is not None

    async def set_counts(self, parent_id: UUID, *, total: int, succeeded: int, failed: int, skipped: int) -> None:
        """Set the number of items of a parent, and the numbers of those that are finished."""
        counters = {"total": total, "succeeded": succeeded, "failed": failed, "skipped": skipped}
        await self._session.execute(update(Job).where(Job.id == parent_id).values(counters))

    async def add_counts(
        self, parent_id: UUID, *, succeeded: int = 0, failed: int = 0, skipped: int = 0
    ) -> JobStatus | None:
        """Count finished items; the last one ends the job. Returns its status then, else None."""
        params = {"parent_id": parent_id, "succeeded": succeeded, "failed": failed, "skipped": skipped}
        status = await self._session.scalar(statements.ADD_COUNTS, params)
        if status in (JobStatus.FAILED, JobStatus.PARTIAL):
            await record_ended_jobs(self._session, [parent_id])
        return None if status in (None, JobStatus.RUNNING) else JobStatus(status)

    async def is_cancelled(self, parent_id: UUID) -> bool:
        """Return whether the cancellation of a parent was requested."""
        return bool(await self._session.scalar(statements.IS_CANCELLED, {"parent_id": parent_id}))

    async def has_failed_lanes(self, parent_id: UUID) -> bool:
        """Return whether any lane of a parent has failed."""
        failed = select(Job.id).where(Job.parent_id == parent_id, Job.status == JobStatus.FAILED).limit(1)
        return await self._session.scalar(failed) is not None

    async def wake_lanes(self, parent_id: UUID) -> None:
        """Make queued lanes due at once, so that they find that their parent was cancelled.

        Any worker may run them now: what is left to do needs no storage, unless a volume is held.
        """
        query = update(Job).where(Job.parent_id == parent_id, Job.status == JobStatus.QUEUED)
        changes = {"run_at": func.now(), "dispatched_at": None, "backend": None, "version": Job.version + 1}
        await self._session.execute(query.values(changes))

    async def without_lanes(self, limit: int) -> Sequence[UUID]:
        """Find delegated jobs that have no live lane."""
        return (await self._session.scalars(_find_without_lanes(limit))).all()

    async def lock_without_lanes(self, job_id: UUID) -> Job | None:
        """Lock a delegated job if it still has no live lane; return None if it has, or if another session locked it."""
        query = _without_lanes().where(Job.id == job_id).with_for_update(skip_locked=True)
        if await self._session.scalar(query) is None:
            return None
        # Query again now that the row is locked: lanes may have been added since the first snapshot, and when
        # PostgreSQL locks a row, it checks again only that row, not the rows of a subquery.
        return await self._session.scalar(query)

    async def defer(self, job_id: UUID) -> None:
        """Postpone a job that could not be given lanes, unless it is locked."""
        job = _without_lanes().with_only_columns(Job.id).where(Job.id == job_id).with_for_update(skip_locked=True)
        query = update(Job).where(Job.id.in_(job)).values(run_at=from_now(_DEFER_SECONDS))
        await self._session.execute(query.execution_options(synchronize_session=False))


def any_without_lanes() -> ColumnElement[bool]:
    """Return the condition that a delegated job has no live lane and is not postponed."""
    return _without_lanes().with_only_columns(Job.id).exists()


@lru_cache  # runs in every sweep
def _find_without_lanes(limit: int) -> Select[UUID]:
    return _without_lanes().with_only_columns(Job.id).order_by(Job.run_at).limit(limit)


def _without_lanes() -> Select[Job]:
    """Select the delegated jobs without a live lane; their ``run_at`` is the time of the next try."""
    return select(Job).where(is_without_lanes(), Job.run_at <= func.now())


def is_without_lanes() -> ColumnElement[bool]:
    """Return the condition that a job is delegated and none of its lanes is live."""
    return and_(Job.status == JobStatus.RUNNING, Job.lease_expires_at.is_(None), ~has_live_lane())


def has_live_lane() -> ColumnElement[bool]:
    """Return the condition that any child of a job has not ended."""
    lane = aliased(Job)
    return exists().where(lane.parent_id == Job.id, lane.status.in_(LIVE)).correlate(Job)
