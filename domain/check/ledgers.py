"""Checks bulk jobs against their ledgers: counters must match the items, and an ended job has no unfinished items."""

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.ledger import AS_LANES_LOST, Ledger
from domain.bulk.model import Item, ItemStatus
from domain.bulk.service import recount
from domain.check.findings import CheckCode, Finding, Report, job
from domain.check.rows import PAGE
from domain.db.database import Database
from domain.db.sql import statement_timeout
from domain.jobs.kinds import BULK_KINDS
from domain.jobs.model import Job
from domain.jobs.states import ENDED, JobStatus
from domain.jobs.store.jobs import JobRepository

#: Statement timeout for reading a ledger; counting a million items takes some seconds.
_COUNT_SECONDS: Final = 50


class LedgerState(NamedTuple):
    """A bulk job's counters (None before they are first set), and the counts of its ledger."""

    status: JobStatus
    counters: tuple[int | None, ...]
    ledger: tuple[int, ...]
    unfinished: int

    @property
    def agrees(self) -> bool:
        """Whether counters and ledger are equal; a pruned ledger agrees with any counters."""
        pruned = self.status in ENDED and self.ledger[0] == 0
        return pruned or self.counters == self.ledger

    @property
    def comparable(self) -> bool:
        """Whether they must be equal: the counters are unset while the job is being planned."""
        return self.status in ENDED or self.counters[0] is not None


class Ledgers:
    """Checks the ledgers of all bulk jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def findings(self, report: Report, *, repair: bool) -> AsyncIterator[Finding]:
        """Yield bulk jobs that disagree with their ledgers, repaired if ``repair``."""
        after: UUID | None = None
        while page := await self._page(after):
            after = page[-1]
            for job_id in page:
                report.checked["ledgers"] += 1
                for finding in _compare(job_id, await self._ledger_state(job_id)):
                    if repair:
                        await self._recount(job_id)
                    yield finding.as_repaired() if repair else finding

    async def _recount(self, job_id: UUID) -> None:
        """Fail the unfinished items of an ended job, then recount."""
        async with self._database.transaction() as session:
            found = await JobRepository(session).get(job_id)
        if found is not None and found.ended:
            for status in (ItemStatus.PENDING, ItemStatus.CLAIMED):
                while await self._fail_items(job_id, status):
                    pass
        async with self._database.transaction() as session:
            # Finishing an item locks the parent last and adds to its counters. Under that lock, every finished item
            # that is counted here has been added already.
            if await JobRepository(session).get_for_update(job_id) is not None:
                await recount(session, job_id)

    async def _fail_items(self, job_id: UUID, status: ItemStatus) -> int:
        async with self._database.transaction() as session:
            return len(await Ledger(session).close(job_id, status, AS_LANES_LOST))

    async def _page(self, after: UUID | None) -> Sequence[UUID]:
        async with self._database.transaction() as session:
            return await LedgerStateRepository(session).page(after, PAGE)

    async def _ledger_state(self, job_id: UUID) -> LedgerState | None:
        async with self._database.transaction() as session:
            return await LedgerStateRepository(session).read(job_id)


class LedgerStateRepository:
    """Reads bulk jobs with their ledgers; each by one statement, so that both are of the same moment."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def page(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """Return the ids of bulk jobs in ascending order. A job that is being pruned has no ledger to compare."""
        query = select(Job.id).where(Job.kind.in_(BULK_KINDS), Job.pruned_at.is_(None)).order_by(Job.id).limit(limit)
        return (await self._session.scalars(query if after is None else query.where(Job.id > after))).all()

    async def read(self, job_id: UUID) -> LedgerState | None:
        """Read a bulk job's counters together with the counts of its ledger; None if it has just been pruned."""
        await self._session.execute(statement_timeout(_COUNT_SECONDS))
        ledger = (func.count(Item.volume_id), *map(_count, (ItemStatus.SUCCEEDED, ItemStatus.FAILED)))
        ledger += (_count(ItemStatus.SKIPPED), _count(ItemStatus.PENDING, ItemStatus.CLAIMED))
        counters = (Job.total, Job.succeeded, Job.failed, Job.skipped)
        query = select(Job.status, *counters, *ledger).outerjoin(Item, Item.job_id == Job.id)
        row = (await self._session.execute(query.where(Job.id == job_id).group_by(Job.id))).one_or_none()
        return None if row is None else LedgerState(row[0], tuple(row[1:5]), tuple(row[5:9]), row[9])


def _count(*statuses: ItemStatus) -> ColumnElement[int]:
    return func.count(Item.volume_id).filter(Item.status.in_(statuses))


def _compare(job_id: UUID, state: LedgerState | None) -> Iterator[Finding]:
    if state is None or not state.comparable:
        return
    if state.status is not JobStatus.RUNNING and state.unfinished:
        problem = f"is {state.status}, but {state.unfinished} of its items are not finished"
        yield Finding(CheckCode.ITEMS_UNFINISHED, job(job_id), problem)
    if not state.agrees:
        problem = f"has the counters {state.counters}, its ledger {state.ledger} (total, succeeded, failed, skipped)"
        yield Finding(CheckCode.MISCOUNTED, job(job_id), problem)
