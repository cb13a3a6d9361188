"""Prunes old rows in small batches: ended jobs with their ledgers and lanes, and expired idempotency keys.

Any number of workers may prune concurrently, as each skips the rows that another has locked. A job is kept as long as a
retry of it exists, because a retry may read the ledger of the job it retries, or of that job's predecessor.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final, Protocol
from uuid import UUID

from sqlalchemy import ColumnElement, Select, delete, exists, func, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from domain.db.database import Database
from domain.jobs.acceptance import IdempotencyKey
from domain.jobs.model import Job
from domain.jobs.store.parents import has_live_lane

#: Maximum number of rows per transaction.
_JOBS_PER_BATCH: Final = 200
_ITEMS_PER_BATCH: Final = 5000
_KEYS_PER_BATCH: Final = 1000
#: Maximum number of transactions per step of a run; the next run continues.
_MAX_BATCHES: Final = 5

#: Deletes items from the ledgers of these jobs, up to a limit; returns their number.
ClearLedgers = Callable[[AsyncSession, Collection[UUID], int], Awaitable[int]]


@dataclass(frozen=True)
class Pruned:
    """The number of rows deleted, and whether there are more to delete."""

    rows: int
    more: bool


class Prune(Protocol):
    """Deletes rows of another package that are older than ``age``."""

    async def __call__(self, session: AsyncSession, *, age: timedelta) -> Pruned:
        """Delete one batch in the given transaction."""


_Step = Callable[[AsyncSession], Awaitable[Pruned]]


class Retention:
    """The retention policy of ended jobs, idempotency keys and the rows that ``others`` prune."""

    def __init__(
        self,
        database: Database,
        clear_ledgers: ClearLedgers,
        *,
        days: float,
        others: Collection[tuple[Prune, float]] = (),
    ) -> None:
        """``days`` is the retention of ended jobs; each of ``others`` has its own, and each key its own expiry."""
        self._database = database
        self._clear_ledgers = clear_ledgers
        self._age = timedelta(days=days)
        self._others = others

    async def prune(self) -> Pruned:
        """Delete a few batches of each kind of row."""
        steps: list[_Step] = [self._prune_jobs, _prune_keys]
        steps += [partial(prune, age=timedelta(days=days)) for prune, days in self._others]
        pruned = [await self._in_batches(step) for step in steps]
        return Pruned(sum(batch.rows for batch in pruned), any(batch.more for batch in pruned))

    async def _in_batches(self, step: _Step) -> Pruned:
        rows, batch = 0, Pruned(0, more=True)
        for _ in range(_MAX_BATCHES):
            if not batch.more:
                break
            async with self._database.transaction() as session:
                batch = await step(session)
            rows += batch.rows
        return Pruned(rows, batch.more)

    async def _prune_jobs(self, session: AsyncSession) -> Pruned:
        repository = RetentionRepository(session)
        job_ids = await repository.lock_expired(self._age, _JOBS_PER_BATCH)
        if not job_ids:
            return Pruned(0, more=False)
        items = await self._clear_ledgers(session, job_ids, _ITEMS_PER_BATCH)
        if items == _ITEMS_PER_BATCH:  # there may be more: hide the jobs until the rest of their ledgers is deleted
            await repository.mark_pruned(job_ids)
            return Pruned(items, more=True)
        return Pruned(items + await repository.delete(job_ids), more=len(job_ids) == _JOBS_PER_BATCH)


class RetentionRepository:
    """Jobs past their retention, within one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def lock_expired(self, age: timedelta, limit: int) -> Sequence[UUID]:
        """Lock jobs that ended more than ``age`` ago, oldest first; locked rows are skipped."""
        query = _expired(age).order_by(Job.finished_at).limit(limit).with_for_update(skip_locked=True)
        locked = (await self._session.scalars(query)).all()
        # Query again now that the rows are locked: a retry may have been added meanwhile, but none can be added now.
        return (await self._session.scalars(_expired(age).where(Job.id.in_(locked)))).all()

    async def mark_pruned(self, job_ids: Collection[UUID]) -> None:
        """Hide these jobs from all readers: a job with an incomplete ledger must not be read or retried."""
        query = update(Job).where(Job.id.in_(job_ids), Job.pruned_at.is_(None)).values(pruned_at=func.now())
        await self._session.execute(query.execution_options(synchronize_session=False))

    async def delete(self, job_ids: Collection[UUID]) -> int:
        """Delete jobs, their lanes first. Returns the number of rows deleted."""
        return await self._delete(Job.parent_id.in_(job_ids)) + await self._delete(Job.id.in_(job_ids))

    async def _delete(self, condition: ColumnElement[bool]) -> int:
        query = delete(Job).where(condition).returning(Job.id).execution_options(synchronize_session=False)
        return len((await self._session.scalars(query)).all())


def _expired(age: timedelta) -> Select[UUID]:
    """Select top-level jobs that ended more than ``age`` ago and have neither a live lane nor a retry."""
    retry = aliased(Job)
    return (
        select(Job.id)
        .where(Job.finished_at < func.now() - literal(age), Job.parent_id.is_(None))
        .where(~has_live_lane())
        .where(~exists().where(retry.retry_of == Job.id))
    )


async def _prune_keys(session: AsyncSession) -> Pruned:
    primary_key = tuple_(IdempotencyKey.caller, IdempotencyKey.key)
    expired = (
        select(IdempotencyKey.caller, IdempotencyKey.key)
        .where(IdempotencyKey.expires_at < func.now())
        .order_by(IdempotencyKey.expires_at)
        .limit(_KEYS_PER_BATCH)
        .with_for_update(skip_locked=True)
    )
    query = delete(IdempotencyKey).where(primary_key.in_(expired)).returning(IdempotencyKey.key)
    rows = len((await session.scalars(query.execution_options(synchronize_session=False))).all())
    return Pruned(rows, more=rows == _KEYS_PER_BATCH)
