"""Forgets what is old, in small steps: ended jobs with their ledgers and lanes, and idempotency keys.

Any number of workers may do so at once: what one has locked the others pass over. A job is kept for as long as a retry
of it is, because a retry may read the ledger of what it repeats, or of what that repeated.
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
from domain.jobs.idempotency import IdempotencyKey
from domain.jobs.model import Job
from domain.jobs.store.parents import has_live_lane

#: Rows in one transaction.
_JOBS_PER_BATCH: Final = 200
_ITEMS_PER_BATCH: Final = 5000
_KEYS_PER_BATCH: Final = 1000
#: Transactions in one round; the rest waits for the next.
_MAX_BATCHES: Final = 5

#: Strikes up to so many entries off the ledgers of these jobs; returns how many there were.
ClearLedgers = Callable[[AsyncSession, Collection[UUID], int], Awaitable[int]]


@dataclass(frozen=True)
class Pruned:
    """What one round came to: rows that are gone, and whether there are more to go."""

    rows: int
    more: bool


class Prune(Protocol):
    """Forgets some rows of another room that are older than ``age``."""

    async def __call__(self, session: AsyncSession, *, age: timedelta) -> Pruned:
        """Do so, in the given transaction."""


_Step = Callable[[AsyncSession], Awaitable[Pruned]]


class Retention:
    """How long things are remembered that nobody works on any more."""

    def __init__(
        self, database: Database, clear_ledgers: ClearLedgers, *, days: float, others: Collection[Prune] = ()
    ) -> None:
        """``days``: for how long an ended job is kept, and what ``others`` prune; keys say when they expire."""
        self._database = database
        self._clear_ledgers = clear_ledgers
        self._age = timedelta(days=days)
        self._others = others

    async def prune(self) -> Pruned:
        """Forget a few batches of each."""
        steps: list[_Step] = [self._prune_jobs, _prune_keys]
        steps += [partial(prune, age=self._age) for prune in self._others]
        pruned = [await self._in_batches(step) for step in steps]
        return Pruned(sum(one.rows for one in pruned), any(one.more for one in pruned))

    async def _in_batches(self, prune: _Step) -> Pruned:
        rows, batch = 0, Pruned(0, more=True)
        for _ in range(_MAX_BATCHES):
            if not batch.more:
                break
            async with self._database.transaction() as session:
                batch = await prune(session)
            rows += batch.rows
        return Pruned(rows, batch.more)

    async def _prune_jobs(self, session: AsyncSession) -> Pruned:
        expired = RetentionRepository(session)
        job_ids = await expired.lock_expired(self._age, _JOBS_PER_BATCH)
        if not job_ids:
            return Pruned(0, more=False)
        items = await self._clear_ledgers(session, job_ids, _ITEMS_PER_BATCH)
        if items == _ITEMS_PER_BATCH:  # a ledger may be long: from now on nobody sees the job that it belongs to
            await expired.mark_pruned(job_ids)
            return Pruned(items, more=True)
        return Pruned(items + await expired.delete(job_ids), more=len(job_ids) == _JOBS_PER_BATCH)


class RetentionRepository:
    """Jobs whose time is over, seen from one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def lock_expired(self, age: timedelta, limit: int) -> Sequence[UUID]:
        """Lock jobs that ended longer ago than ``age``, longest ago first; what somebody has locked is passed over."""
        locking = _expired(age).order_by(Job.finished_at).limit(limit).with_for_update(skip_locked=True)
        held = (await self._session.scalars(locking)).all()
        # Asked once more, now that they are locked: a retry may have come in between, and none can come any more.
        return (await self._session.scalars(_expired(age).where(Job.id.in_(held)))).all()

    async def mark_pruned(self, job_ids: Collection[UUID]) -> None:
        """Have these jobs be gone for everybody who asks; what is left of them nobody must read or retry."""
        hiding = update(Job).where(Job.id.in_(job_ids), Job.pruned_at.is_(None)).values(pruned_at=func.now())
        await self._session.execute(hiding.execution_options(synchronize_session=False))

    async def delete(self, job_ids: Collection[UUID]) -> int:
        """Delete jobs, their lanes first. Returns how many rows there were."""
        return await self._delete(Job.parent_id.in_(job_ids)) + await self._delete(Job.id.in_(job_ids))

    async def _delete(self, condition: ColumnElement[bool]) -> int:
        deleting = delete(Job).where(condition).returning(Job.id).execution_options(synchronize_session=False)
        return len((await self._session.scalars(deleting)).all())


def _expired(age: timedelta) -> Select[UUID]:
    """Jobs that are no part of another, ended long ago, and that nobody needs: neither a lane nor a retry."""
    retry = aliased(Job)
    return (
        select(Job.id)
        .where(Job.finished_at < func.now() - literal(age), Job.parent_id.is_(None))
        .where(~has_live_lane())
        .where(~exists().where(retry.retry_of == Job.id))
    )


async def _prune_keys(session: AsyncSession) -> Pruned:
    name = tuple_(IdempotencyKey.caller, IdempotencyKey.key)
    expired = (
        select(IdempotencyKey.caller, IdempotencyKey.key)
        .where(IdempotencyKey.expires_at < func.now())
        .order_by(IdempotencyKey.expires_at)
        .limit(_KEYS_PER_BATCH)
        .with_for_update(skip_locked=True)
    )
    deleting = delete(IdempotencyKey).where(name.in_(expired)).returning(IdempotencyKey.key)
    rows = len((await session.scalars(deleting.execution_options(synchronize_session=False))).all())
    return Pruned(rows, more=rows == _KEYS_PER_BATCH)
