"""What bulk jobs ask of the job table: a parent that has no lease of its own, and its children, the lanes.

Takes a session, never commits. The parent's row is always locked last.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, exists, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from domain.db.sql import from_now
from domain.jobs.model import Job
from domain.jobs.states import LIVE, JobStatus

#: For how long a job is left alone that could not be given new lanes (seconds); others have their turn meanwhile.
_DEFER_SECONDS: Final = 60.0

# What lanes ask again and again is SQL, once and for all, as in `leases`.

_LOCK_HELD: Final = text("""
    SELECT 1 FROM jobs
    WHERE id = :id AND epoch = :epoch AND worker_id = :worker_id AND status = 'running'
    FOR NO KEY UPDATE
""")
_IS_CANCELLED: Final = text("SELECT cancel_requested_at IS NOT NULL FROM jobs WHERE id = :parent_id")
_SUCCEEDED, _FAILED, _SKIPPED = "succeeded + :succeeded", "failed + :failed", "skipped + :skipped"
_DONE: Final = f"{_SUCCEEDED} + {_FAILED} + {_SKIPPED} >= total"
_ADD_COUNTS: Final = text(f"""
    UPDATE jobs
    SET succeeded = {_SUCCEEDED},
        failed = {_FAILED},
        skipped = {_SKIPPED},
        version = version + 1,
        status = CASE
            WHEN NOT {_DONE} THEN status
            WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
            WHEN {_FAILED} = 0 THEN 'succeeded'
            WHEN {_SUCCEEDED} = 0 THEN 'failed'
            ELSE 'partial'
        END,
        error = CASE
            WHEN NOT {_DONE} THEN error
            WHEN {_FAILED} > 0 THEN jsonb_build_object(
                'code', 'items-failed',
                'detail', concat({_FAILED}, ' of ', total, ' failed; the job''s items say which and why.')
            )
        END,
        finished_at = CASE WHEN {_DONE} THEN now() END
    WHERE id = :parent_id AND status = 'running'
    RETURNING status
""")  # noqa: S608 (words of our own)


class ParentRepository:
    """Parents and lanes, seen from one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def lock_held(self, job_id: UUID, *, epoch: int, worker_id: UUID | None) -> bool:
        """Lock a job's row, if this attempt still has it: what follows is recorded by it or by nobody."""
        asked = {"id": job_id, "epoch": epoch, "worker_id": worker_id}
        return await self._session.scalar(_LOCK_HELD, asked) is not None

    async def set_counts(self, parent_id: UUID, *, total: int, succeeded: int, failed: int, skipped: int) -> None:
        """Write down how many parts a job has, and how many of them are finished."""
        counters = {"total": total, "succeeded": succeeded, "failed": failed, "skipped": skipped}
        await self._session.execute(update(Job).where(Job.id == parent_id).values(counters))

    async def add_counts(self, parent_id: UUID, *, succeeded: int = 0, failed: int = 0, skipped: int = 0) -> bool:
        """Count finished parts; the last one ends the job. Returns whether it did."""
        counts = {"parent_id": parent_id, "succeeded": succeeded, "failed": failed, "skipped": skipped}
        return await self._session.scalar(_ADD_COUNTS, counts) not in (None, JobStatus.RUNNING)

    async def is_cancelled(self, parent_id: UUID) -> bool:
        """Tell whether a job's end was asked for."""
        return bool(await self._session.scalar(_IS_CANCELLED, {"parent_id": parent_id}))

    async def wake_lanes(self, parent_id: UUID) -> None:
        """Have waiting lanes rung at once, to hear that the job was cancelled."""
        query = update(Job).where(Job.parent_id == parent_id, Job.status == JobStatus.QUEUED)
        await self._session.execute(query.values(run_at=func.now(), dispatched_at=None, version=Job.version + 1))

    async def without_lanes(self, limit: int) -> Sequence[UUID]:
        """Find jobs that were handed over and have no live lane left."""
        return (await self._session.scalars(_find_without_lanes(limit))).all()

    async def lock_without_lanes(self, job_id: UUID) -> Job | None:
        """Lock such a job, if it still is one; one that somebody else has locked is passed over."""
        query = _without_lanes().where(Job.id == job_id).with_for_update(skip_locked=True)
        if await self._session.scalar(query) is None:
            return None
        # Asked once more, now that it is locked: it may have got lanes meanwhile, and PostgreSQL looks again at the
        # row itself only.
        return await self._session.scalar(query)

    async def defer(self, job_id: UUID) -> None:
        """Come back later to a job that could not be given lanes; unless it is locked."""
        job = _without_lanes().with_only_columns(Job.id).where(Job.id == job_id).with_for_update(skip_locked=True)
        query = update(Job).where(Job.id.in_(job)).values(run_at=from_now(_DEFER_SECONDS))
        await self._session.execute(query.execution_options(synchronize_session=False))


def any_without_lanes() -> ColumnElement[bool]:
    """Whether there is a job that was handed over, has no live lane left, and may be looked after."""
    return _without_lanes().with_only_columns(Job.id).exists()


@lru_cache  # they are asked for again and again
def _find_without_lanes(limit: int) -> Select[UUID]:
    return _without_lanes().with_only_columns(Job.id).order_by(Job.run_at).limit(limit)


def _without_lanes() -> Select[Job]:
    """Jobs that are forsaken; their ``run_at`` is when they may be looked after."""
    return select(Job).where(is_without_lanes(), Job.run_at <= func.now())


def is_without_lanes() -> ColumnElement[bool]:
    """Whether a job was handed over to lanes of which none is alive."""
    return and_(Job.status == JobStatus.RUNNING, Job.lease_expires_at.is_(None), ~has_live_lane())


def has_live_lane() -> ColumnElement[bool]:
    """Whether any part of a job has not ended."""
    lane = aliased(Job)
    return exists().where(lane.parent_id == Job.id, lane.status.in_(LIVE)).correlate(Job)
