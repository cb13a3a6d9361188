"""Orphans: running jobs whose lease has expired, because their worker died or lost its connection.

Takes a session, never commits. All times are PostgreSQL's, so that the workers' clocks do not matter.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, UpdateBase, delete, func, select, true, update
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.sql import from_now
from domain.jobs.attempt import WORKER_LOST
from domain.jobs.model import Job, Worker
from domain.jobs.states import JobStatus

#: Number of claims that an orphan gets beyond its attempts, for a worker to find out the state of the storage.
EXTRA_CLAIMS: Final = 3
#: Seconds until the next try of an orphan that could not be processed; others are processed meanwhile.
_DEFER_SECONDS: Final = 60.0

#: Seconds without a heartbeat after which a worker is removed from the list of workers.
_SILENT_WORKER_SECONDS: Final = 3600.0


class OrphanRepository:
    """Orphans and silent workers, within one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def rescue(self, limit: int, *, safe: ColumnElement[bool]) -> Sequence[UUID]:
        """Requeue orphans if it is ``safe``; their attempts stay spent. Returns their ids."""
        return (await self._session.scalars(_rescue(limit, safe))).all()

    async def requeue(self, job_id: UUID) -> None:
        """Requeue one orphan, which the caller has found and locked."""
        await self._session.execute(_requeue(Job.id == job_id))

    async def exhausted(self, limit: int, *, kinds: Collection[str], safe: ColumnElement[bool]) -> Sequence[UUID]:
        """Find orphans that have used up all their claims: each worker that claimed them has died."""
        return (await self._session.scalars(_find_exhausted(limit, tuple(kinds), safe))).all()

    async def fail(self, job_id: UUID) -> Job | None:
        """Fail an exhausted orphan and return it; None if another worker has processed it or has it locked."""
        orphan = _orphans(true()).where(_exhausted(), Job.id == job_id).with_for_update(skip_locked=True)
        query = (
            update(Job)
            .where(Job.id.in_(orphan))
            .values(
                status=JobStatus.FAILED,
                version=Job.version + 1,
                lease_expires_at=None,
                waiting_for=None,
                finished_at=func.now(),
                error=WORKER_LOST,
            )
            .returning(Job)
            .execution_options(synchronize_session=False, populate_existing=True)
        )
        return (await self._session.scalars(query)).one_or_none()

    async def defer(self, job_id: UUID) -> None:
        """Postpone an orphan that could not be processed, unless it is locked."""
        orphan = _orphans(true()).where(Job.id == job_id).with_for_update(skip_locked=True)
        query = update(Job).where(Job.id.in_(orphan)).values(lease_expires_at=from_now(_DEFER_SECONDS))
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def delete_silent_workers(self) -> None:
        """Remove workers without a heartbeat for an hour from the list of workers."""
        await self._session.execute(delete(Worker).where(_silent()))


def rescue_is_safe(worker_id: UUID, *, lease: float) -> ColumnElement[bool]:
    """Return a condition that is true once every live worker has had time to renew its leases.

    A lease also expires while PostgreSQL is down or the host is suspended. So ``worker_id`` may rescue only if

    1. its last heartbeat is younger than half a lease. Others may have renewed up to one heartbeat earlier: a rescue
       sent while PostgreSQL was paused, which runs as soon as it resumes, must not overtake their next heartbeats;
    2. it has been beating without a gap for the longest renewal delay of any worker; and
    3. PostgreSQL did not start within the last lease, nor up to a lease in the future: that happens if its clock was
       set back. (A larger step back interrupts the heartbeats, case 2.)

    Evaluated inside the UPDATE of the rescue, so that a worker paused between check and rescue cannot act on a stale
    answer.
    """
    longest_delay = select(func.max(Worker.max_renewal_delay)).scalar_subquery()
    uninterrupted = select(Worker.id).where(
        Worker.id == worker_id,
        Worker.heartbeat_at.between(from_now(-lease / 2), from_now(lease)),
        Worker.uninterrupted_since <= func.now() - longest_delay * timedelta(seconds=1),
    )
    return uninterrupted.exists() & ~func.pg_postmaster_start_time().between(from_now(-lease), from_now(lease))


def any_orphans_or_dead_workers() -> ColumnElement[bool]:
    """Return the condition that there are orphans, or silent workers to be removed."""
    orphans = select(Job.id).where(Job.lease_expires_at < func.now()).order_by(Job.lease_expires_at).limit(1)
    return orphans.scalar_subquery().is_not(None) | select(Worker.id).where(_silent()).exists()


# These run in every sweep, so they are built once.


@lru_cache
def _rescue(limit: int, safe: ColumnElement[bool]) -> UpdateBase:
    orphans = _orphans(safe).where(~_exhausted()).limit(limit).with_for_update(skip_locked=True)
    return _requeue(Job.id.in_(orphans))


@lru_cache
def _find_exhausted(limit: int, kinds: tuple[str, ...], safe: ColumnElement[bool]) -> Select[UUID]:
    return _orphans(safe).where(_exhausted(), Job.kind.in_(kinds)).limit(limit)


def _silent() -> ColumnElement[bool]:
    return Worker.heartbeat_at < from_now(-_SILENT_WORKER_SECONDS)


def _requeue(condition: ColumnElement[bool]) -> UpdateBase:
    return (
        update(Job)
        .where(condition)
        .values(
            status=JobStatus.QUEUED,
            version=Job.version + 1,
            epoch=Job.epoch + 1,
            run_at=func.now(),
            dispatched_at=None,
            lease_expires_at=None,
            waiting_for=None,
            error=WORKER_LOST,
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )


def _orphans(safe: ColumnElement[bool]) -> Select[UUID]:
    """Select the jobs whose lease has expired, oldest expiry first."""
    return select(Job.id).where(Job.lease_expires_at < func.now(), safe).order_by(Job.lease_expires_at)


def _exhausted() -> ColumnElement[bool]:
    return Job.attempt >= Job.max_attempts + EXTRA_CLAIMS
