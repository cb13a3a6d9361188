"""Jobs and ledgers: what does not agree in PostgreSQL itself, and its mending."""

from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from domain.database import Database
from domain.expansion.ledger import Ledger
from domain.expansion.states import Code as ItemCode
from domain.expansion.states import ItemStatus
from domain.inspection.books import Account, Books, JobState
from domain.inspection.findings import MENDS, Code, Finding, Report, job
from domain.jobs.batches import BatchRepository
from domain.jobs.kinds import Kinds
from domain.jobs.model import Job
from domain.jobs.repository import JobRepository
from domain.jobs.retry import WORKER_LOST
from domain.jobs.states import JobStatus

PAGE: Final = 1000
#: So many leases without a sign of life are more than a crash.
SILENT_LEASES: Final = 10
_START: Final = "start a worker"
_LEASED: Final = "a worker is at it: check again when it has ended"
NOT_IN_HAND: Final = {
    "code": "not-in-hand",
    "detail": "The job did not have what it was about; an inspection ended it.",
}


class Bookkeeping:
    """Looks through live jobs and all ledgers."""

    def __init__(self, database: Database, kinds: Kinds, *, lease: float) -> None:
        """``lease`` in seconds."""
        self._database = database
        self._kinds = kinds
        self._patience = SILENT_LEASES * lease

    async def jobs(self, report: Report, *, repair: bool) -> AsyncIterator[Finding]:
        """Tell what is wrong with live jobs."""
        after: UUID | None = None
        while page := await self._live(after):
            after = page[-1].id
            report.looked_at["live jobs"] += len(page)
            for state in page:
                finding = self._judge(state)
                if finding is not None and repair and finding.mendable:
                    finding = finding.mended() if await self._mend(state, finding.code) else None
                if finding is not None:
                    yield finding

    async def ledgers(self, report: Report, *, repair: bool) -> AsyncIterator[Finding]:
        """Tell which bulk jobs' counters and ledgers do not agree."""
        after: UUID | None = None
        while page := await self._bulks(after):
            after = page[-1]
            for job_id in page:
                report.looked_at["ledgers"] += 1
                for finding in _audit(job_id, await self._account(job_id)):
                    if repair:
                        await self._balance(job_id)
                    yield finding.mended() if repair else finding

    def _judge(self, state: JobState) -> Finding | None:
        name = job(state.id)
        if not state.in_hand:
            known = state.kind in self._kinds
            remedy = _LEASED if state.leased else MENDS if known else "start a worker that knows this kind"
            return Finding(Code.NOT_IN_HAND, name, f"{state.kind} is {state.status} without what it is about", remedy)
        if state.silent > self._patience:
            return Finding(Code.NO_WORKER, name, f"{state.kind} lost its worker {state.silent:.0f} s ago")
        if state.forsaken:
            problem = f"{state.kind} has no lane left, and no worker has given it a new one"
            return Finding(Code.NO_LANES, name, problem, _START)
        return None

    async def _mend(self, state: JobState, code: Code) -> bool:
        async with self._database.transaction() as session:
            found = await JobRepository(session).get_for_update(state.id)
            if found is None or found.version != state.version:
                return False
            found.version += 1
            found.lease_expires_at = None
            if code is Code.NO_WORKER:
                _put_back(found)
            else:
                await self._end(session, found)
        return True

    async def _end(self, session: AsyncSession, found: Job) -> None:
        found.status, found.error, found.finished_at = JobStatus.FAILED, NOT_IN_HAND, func.now()
        await session.flush()
        await self._kinds[found.kind].abandon(session, [(found, None)])

    async def _balance(self, job_id: UUID) -> None:
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
                batches = BatchRepository(session)
                await batches.count(job_id, **await Ledger(session).counts(job_id))
                await batches.tally(job_id)

    async def _close_some(self, job_id: UUID, was: ItemStatus) -> int:
        async with self._database.transaction() as session:
            closed = await Ledger(session).close(job_id, was=was, status=ItemStatus.FAILED, code=ItemCode.LANES_LOST)
        return len(closed)

    async def _live(self, after: UUID | None) -> list[JobState]:
        async with self._database.transaction() as session:
            return list(await Books(session).live(after, PAGE, patience=self._patience))

    async def _bulks(self, after: UUID | None) -> list[UUID]:
        async with self._database.transaction() as session:
            return list(await Books(session).bulks(after, PAGE))

    async def _account(self, job_id: UUID) -> Account | None:
        async with self._database.transaction() as session:
            return await Books(session).account(job_id)


def _audit(job_id: UUID, account: Account | None) -> list[Finding]:
    if account is None or not account.due:
        return []
    findings = []
    if account.status is not JobStatus.RUNNING and account.unfinished:
        problem = f"is {account.status}, but {account.unfinished} of its items are not finished"
        findings.append(Finding(Code.ITEMS_UNFINISHED, job(job_id), problem))
    if not account.agrees:
        problem = f"counts {account.counters}, its ledger {account.ledger} (all, succeeded, failed, skipped)"
        findings.append(Finding(Code.MISCOUNTED, job(job_id), problem))
    return findings


def _put_back(found: Job) -> None:
    """Do as housekeeping does with the jobs of dead workers."""
    found.status, found.error, found.rings = JobStatus.QUEUED, WORKER_LOST, found.rings + 1
    found.run_at, found.rung_at = func.now(), None
