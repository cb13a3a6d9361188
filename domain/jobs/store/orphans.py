"""What housekeeping asks of the job table about jobs whose workers have died.

Takes a session, never commits. All times are PostgreSQL's, so that the clocks of the workers do not matter.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, UpdateBase, delete, func, select, true, update
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.sql import from_now
from domain.jobs.model import Job, Worker
from domain.jobs.retry import WORKER_LOST
from domain.jobs.states import JobStatus

#: How many claims an orphan gets beyond its attempts, so that a worker can find out what is on the storage.
EXTRA_CLAIMS: Final = 3
#: For how long an orphan is left alone that could not be dealt with (seconds); others have their turn meanwhile.
_DEFER_SECONDS: Final = 60.0

#: How long a worker is remembered that has been silent (seconds).
_SILENT_WORKER_SECONDS: Final = 3600.0


class OrphanRepository:
    """Jobs whose leases are over, seen from one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def rescue(self, limit: int, *, sure: ColumnElement[bool]) -> Sequence[UUID]:
        """Put orphans (their lease is over) back into the queue; the attempt stays spent. Returns their ids."""
        return (await self._session.scalars(_rescue(limit, sure))).all()

    async def requeue(self, job_id: UUID) -> None:
        """Do the same with one that the caller has found and locked."""
        await self._session.execute(_requeue(Job.id == job_id))

    async def exhausted(self, limit: int, *, kinds: Collection[str], sure: ColumnElement[bool]) -> Sequence[UUID]:
        """Find orphans that have cost every worker which tried to end them properly."""
        return (await self._session.scalars(_find_exhausted(limit, tuple(kinds), sure))).all()

    async def fail(self, job_id: UUID) -> Job | None:
        """End an orphan without hope. Returns it as it was ended; None if somebody has dealt with it meanwhile."""
        orphan = _orphans(true()).where(_exhausted(), Job.id == job_id).with_for_update(skip_locked=True)
        query = (
            update(Job)
            .where(Job.id.in_(orphan))
            .values(
                status=JobStatus.FAILED,
                version=Job.version + 1,
                lease_expires_at=None,
                finished_at=func.now(),
                error=WORKER_LOST,
            )
            .returning(Job)
            .execution_options(synchronize_session=False, populate_existing=True)
        )
        return (await self._session.scalars(query)).one_or_none()

    async def defer(self, job_id: UUID) -> None:
        """Come back later to an orphan that could not be dealt with; unless it is locked."""
        orphan = _orphans(true()).where(Job.id == job_id).with_for_update(skip_locked=True)
        query = update(Job).where(Job.id.in_(orphan)).values(lease_expires_at=from_now(_DEFER_SECONDS))
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def delete_silent_workers(self) -> None:
        """Strike workers off that have not been heard of for an hour."""
        await self._session.execute(delete(Worker).where(_silent()))


def rescue_is_safe(worker_id: UUID, *, lease: float) -> ColumnElement[bool]:
    """Whether every worker that lives must have renewed its leases by now, as ``worker_id`` can tell.

    A lease also runs out while PostgreSQL is away, or the whole machine asleep. So whoever rescues must have been
    beating without a gap for as long as any worker may need to come back, and PostgreSQL must not have started only
    now (if it says that it will start, its clock has stepped back since, and the beats have told so). One statement
    with the rescue: a process that is stopped in between does not act on what was true before.
    """
    needed = select(func.max(Worker.max_renewal_delay)).scalar_subquery()
    steady = select(Worker.id).where(
        Worker.id == worker_id,
        # Half a lease, for others may have renewed a beat before us: a rescue that was asked for when PostgreSQL stood
        # still, and is carried out as soon as it goes on, must not forestall their next beats.
        Worker.heartbeat_at.between(from_now(-lease / 2), from_now(lease)),
        Worker.uninterrupted_since <= func.now() - needed * timedelta(seconds=1),
    )
    return steady.exists() & ~func.pg_postmaster_start_time().between(from_now(-lease), from_now(lease))


def any_orphans_or_dead_workers() -> ColumnElement[bool]:
    """Whether there are orphans, or workers that have not been heard of for so long that they are forgotten."""
    orphans = select(Job.id).where(Job.lease_expires_at < func.now()).order_by(Job.lease_expires_at).limit(1)
    return orphans.scalar_subquery().is_not(None) | select(Worker.id).where(_silent()).exists()


# These are asked again and again: they are put together once.


@lru_cache
def _rescue(limit: int, sure: ColumnElement[bool]) -> UpdateBase:
    orphans = _orphans(sure).where(~_exhausted()).limit(limit).with_for_update(skip_locked=True)
    return _requeue(Job.id.in_(orphans))


@lru_cache
def _find_exhausted(limit: int, kinds: tuple[str, ...], sure: ColumnElement[bool]) -> Select[UUID]:
    return _orphans(sure).where(_exhausted(), Job.kind.in_(kinds)).limit(limit)


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
            error=WORKER_LOST,
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )


def _orphans(sure: ColumnElement[bool]) -> Select[UUID]:
    """Running jobs whose lease is over, longest ago first."""
    return select(Job.id).where(Job.lease_expires_at < func.now(), sure).order_by(Job.lease_expires_at)


def _exhausted() -> ColumnElement[bool]:
    return Job.attempt >= Job.max_attempts + EXTRA_CLAIMS
