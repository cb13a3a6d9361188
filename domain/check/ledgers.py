"""Ledgers of bulk jobs: do their counters say what their items say, and is an ended one really finished?"""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.kinds import BULK_KINDS
from domain.bulk.ledger import Ledger
from domain.bulk.model import Item
from domain.bulk.service import recount
from domain.bulk.states import ItemCode, ItemStatus
from domain.check.findings import CheckCode, Finding, Report, job
from domain.check.rows import PAGE
from domain.db.database import Database
from domain.jobs.model import Job
from domain.jobs.states import ENDED, JobStatus
from domain.jobs.store.jobs import JobRepository

#: Counting a million items takes some seconds.
_COUNT_SECONDS: Final = 50


class LedgerState(NamedTuple):
    """A bulk job's own counters, and what its ledger says; None before they are first counted."""

    status: JobStatus
    counters: tuple[int | None, ...]
    ledger: tuple[int, ...]
    unfinished: int

    @property
    def agrees(self) -> bool:
        """Whether they are the same; a ledger that was pruned says nothing any more."""
        pruned = self.status in ENDED and self.ledger[0] == 0
        return pruned or self.counters == self.ledger

    @property
    def due(self) -> bool:
        """Whether they should be the same: a plan that is being made is not counted yet."""
        return self.status in ENDED or self.counters[0] is not None


class Ledgers:
    """Looks through the ledgers of all bulk jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def findings(self, report: Report, *, repair: bool) -> AsyncIterator[Finding]:
        """Tell which of them do not agree with their jobs, mended if ``repair`` is asked for."""
        after: UUID | None = None
        while page := await self._page(after):
            after = page[-1]
            for job_id in page:
                report.looked_at["ledgers"] += 1
                for finding in _compare(job_id, await self._ledger_state(job_id)):
                    if repair:
                        await self._recount(job_id)
                    yield finding.as_repaired() if repair else finding

    async def _recount(self, job_id: UUID) -> None:
        """Finish what nobody will work on any more, then count afresh."""
        async with self._database.transaction() as session:
            found = await JobRepository(session).get(job_id)
        if found is not None and found.ended:
            for was in (ItemStatus.PENDING, ItemStatus.CLAIMED):
                while await self._close_some(job_id, was):
                    pass
        async with self._database.transaction() as session:
            # Under the parent's lock, which whoever finishes an item takes last: what is counted here has been tallied.
            if await JobRepository(session).get_for_update(job_id) is not None:
                await recount(session, job_id)

    async def _close_some(self, job_id: UUID, was: ItemStatus) -> int:
        async with self._database.transaction() as session:
            closed = await Ledger(session).close(job_id, was=was, status=ItemStatus.FAILED, code=ItemCode.LANES_LOST)
        return len(closed)

    async def _page(self, after: UUID | None) -> Sequence[UUID]:
        async with self._database.transaction() as session:
            return await LedgerStateRepository(session).page(after, PAGE)

    async def _ledger_state(self, job_id: UUID) -> LedgerState | None:
        async with self._database.transaction() as session:
            return await LedgerStateRepository(session).read(job_id)


class LedgerStateRepository:
    """Bulk jobs beside their ledgers, seen from one transaction, each by one statement: so all of one moment."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def page(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """List jobs that have a ledger, upwards by id; one that is being forgotten has none of it to agree with."""
        query = select(Job.id).where(Job.kind.in_(BULK_KINDS), Job.pruned_at.is_(None)).order_by(Job.id).limit(limit)
        return (await self._session.scalars(query if after is None else query.where(Job.id > after))).all()

    async def read(self, job_id: UUID) -> LedgerState | None:
        """Read a bulk job's counters together with its ledger's; None if it has just been pruned."""
        await self._session.execute(text(f"SET LOCAL statement_timeout = '{_COUNT_SECONDS}s'"))
        ledger = (func.count(Item.volume_id), *map(_count, (ItemStatus.SUCCEEDED, ItemStatus.FAILED)))
        ledger += (_count(ItemStatus.SKIPPED), _count(ItemStatus.PENDING, ItemStatus.CLAIMED))
        counters = (Job.total, Job.succeeded, Job.failed, Job.skipped)
        query = select(Job.status, *counters, *ledger).outerjoin(Item, Item.job_id == Job.id)
        row = (await self._session.execute(query.where(Job.id == job_id).group_by(Job.id))).one_or_none()
        return None if row is None else LedgerState(row[0], tuple(row[1:5]), tuple(row[5:9]), row[9])


def _count(*statuses: ItemStatus) -> ColumnElement[int]:
    return func.count(Item.volume_id).filter(Item.status.in_(statuses))


def _compare(job_id: UUID, account: LedgerState | None) -> Iterator[Finding]:
    if account is None or not account.due:
        return
    if account.status is not JobStatus.RUNNING and account.unfinished:
        problem = f"is {account.status}, but {account.unfinished} of its items are not finished"
        yield Finding(CheckCode.ITEMS_UNFINISHED, job(job_id), problem)
    if not account.agrees:
        problem = f"counts {account.counters}, its ledger {account.ledger} (all, succeeded, failed, skipped)"
        yield Finding(CheckCode.MISCOUNTED, job(job_id), problem)
