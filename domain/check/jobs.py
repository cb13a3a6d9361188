"""Compares jobs with the other rows: live jobs with what they hold, and bulk jobs with their ledgers."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Double, Uuid, and_, cast, func, literal, not_, or_, select
from sqlalchemy.orm import aliased

from domain.bulk.ledger import AS_LANES_LOST, Ledger
from domain.bulk.model import Item, ItemStatus
from domain.bulk.service import recount
from domain.check.findings import REPAIR_COMMAND, CheckCode, Finding, leased_remedy
from domain.check.rows import FIRST, PAGE
from domain.db.database import Database
from domain.db.sql import from_now
from domain.jobs.attempt import ClaimedJob
from domain.jobs.kinds import BULK_KINDS, JobHandlers, JobKind
from domain.jobs.model import Job
from domain.jobs.states import ENDED, LIVE, JobStatus
from domain.jobs.store.jobs import JobRepository
from domain.jobs.store.orphans import OrphanRepository
from domain.jobs.store.parents import is_without_lanes
from domain.jobs.webhooks.outbox import record_ended_jobs
from domain.operations import OPERATIONS, SnapshotState
from domain.snapshots.model import Snapshot
from domain.volumes.model import Volume

#: A job is reported when its lease ended this many leases ago; workers rescue the jobs of a crashed worker earlier.
_OVERDUE_LEASES: Final = 10
#: Statement timeout for reading a ledger; counting a million items takes some seconds.
_COUNT_SECONDS: Final = 50
_NOT_HELD: Final = {
    "code": "not-held",
    "detail": "The job did not hold its volume or snapshot; `cistern check --repair` ended it.",
}


class JobState(NamedTuple):
    """A live job and what may be wrong with it; ``expired_seconds``: since its lease ended, 0 without a lease."""

    id: UUID
    kind: str
    status: JobStatus
    version: int
    holds_subject: bool
    expired_seconds: float
    without_lanes: bool


class LiveJobs:
    """Checks all jobs that have not ended: each must hold its volume or snapshot, and have a worker or lanes."""

    def __init__(self, database: Database, handlers: JobHandlers, *, lease: float) -> None:
        """``lease`` in seconds."""
        self._database = database
        self._handlers = handlers
        self._overdue_seconds = _OVERDUE_LEASES * lease

    async def findings(self, checked: Counter[str], *, repair: bool) -> AsyncIterator[Finding]:
        """Yield the findings about live jobs, repaired where possible if ``repair``."""
        after = FIRST
        while page := await self._page(after):
            after = page[-1].id
            checked["live jobs"] += len(page)
            for state in page:
                finding = self._finding(state)
                if finding is None:
                    continue
                if not (repair and finding.repairable):
                    yield finding
                elif await self._repair(state, finding.code):
                    yield replace(finding, repaired=True)

    def _finding(self, state: JobState) -> Finding | None:
        subject = f"job {state.id}"
        if not state.holds_subject:
            leased_seconds = max(-state.expired_seconds, 0.0)
            remedy = REPAIR_COMMAND if state.kind in self._handlers else "start a worker that knows this kind"
            if leased_seconds:
                remedy = leased_remedy(leased_seconds)
            problem = f"{state.kind} is {state.status}, but does not hold its volume or snapshot"
            return Finding(CheckCode.NOT_HELD, subject, problem, remedy, leased_seconds=leased_seconds)
        if state.expired_seconds > self._overdue_seconds:
            problem = f"{state.kind} lost its worker {state.expired_seconds:.0f} s ago"
            return Finding(CheckCode.NO_WORKER, subject, problem)
        if state.without_lanes:
            problem = f"{state.kind} has no lane left, and no worker has given it a new one"
            return Finding(CheckCode.NO_LANES, subject, problem, "start a worker")
        return None

    async def _repair(self, state: JobState, code: CheckCode) -> bool:
        """Requeue the job as maintenance does with an orphan, or fail it; False if it has changed since it was read."""
        async with self._database.transaction() as session:
            job = await JobRepository(session).get_for_update(state.id)
            if job is None or job.version != state.version:
                return False
            if code is CheckCode.NO_WORKER:
                await OrphanRepository(session).requeue(job.id)
                return True
            job.version, job.lease_expires_at = job.version + 1, None
            job.status, job.error, job.finished_at = JobStatus.FAILED, _NOT_HELD, func.now()
            await session.flush()
            await self._handlers[job.kind].abandon(session, [(ClaimedJob.from_row(job), None)])
            await record_ended_jobs(session, [job.id])
            return True

    async def _page(self, after: UUID) -> Sequence[JobState]:
        """Read jobs and their subjects in ascending order, by one statement, so that all are of the same moment."""
        source = aliased(Volume)
        query = (
            select(
                *(Job.id, Job.kind, Job.status, Job.version),
                and_(_has_volume(), _has_source(source), _has_snapshot()),
                cast(func.coalesce(func.extract("epoch", func.now() - Job.lease_expires_at), 0.0), Double),
                _long_without_lanes(self._overdue_seconds),
            )
            .outerjoin(Volume, Volume.id == Job.volume_id)
            .outerjoin(source, and_(_holds_source(), source.id == cast(Job.params["of_volume"].as_string(), Uuid)))
            .outerjoin(Snapshot, Snapshot.id == Job.snapshot_id)
            .where(Job.status.in_(LIVE), Job.id > after)
            .order_by(Job.id)
            .limit(PAGE)
        )
        async with self._database.transaction() as session:
            return [JobState(*row) for row in await session.execute(query)]


def _has_volume() -> ColumnElement[bool]:
    return or_(Job.volume_id.is_(None), func.coalesce(Volume.job_id == Job.id, literal(value=False)))


def _holds_source() -> ColumnElement[bool]:
    return Job.kind.in_([kind for kind, operation in OPERATIONS.items() if operation.source is not None])


def _has_source(source: type[Volume]) -> ColumnElement[bool]:
    return or_(not_(_holds_source()), func.coalesce(source.job_id == Job.id, literal(value=False)))


def _has_snapshot() -> ColumnElement[bool]:
    """Return the condition that a job holds its snapshot; clone jobs share one."""
    shared: Any = and_(Job.kind == JobKind.SNAPSHOT_CLONE, Snapshot.state == SnapshotState.CLONING)
    own = func.coalesce(or_(Snapshot.job_id == Job.id, shared), literal(value=False))
    return or_(Job.snapshot_id.is_(None), own)


def _long_without_lanes(seconds: float) -> ColumnElement[bool]:
    """Return the condition that a parent has been without lanes for more than ``seconds``."""
    lane = aliased(Job)
    lanes = select(func.max(lane.finished_at)).where(lane.parent_id == Job.id).correlate(Job).scalar_subquery()
    since = func.coalesce(lanes, Job.started_at)
    return and_(is_without_lanes(), since < from_now(-seconds))


class LedgerState(NamedTuple):
    """A bulk job's counters (None before they are first set), and the counts of its ledger, in the same order."""

    status: JobStatus
    counters: tuple[int | None, ...]
    ledger: tuple[int, ...]
    unfinished: int


class Ledgers:
    """Checks all bulk jobs: counters must match the items, and an ended job has no unfinished items."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def findings(self, checked: Counter[str], *, repair: bool) -> AsyncIterator[Finding]:
        """Yield bulk jobs that disagree with their ledgers, repaired if ``repair``."""
        after = FIRST
        while page := await self._page(after):
            after = page[-1]
            for job_id in page:
                checked["ledgers"] += 1
                state = await self._state(job_id)
                for finding in _compare(job_id, state) if state is not None else ():
                    if repair:
                        await self._recount(job_id)
                    yield replace(finding, repaired=repair)

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

    async def _fail_items(self, job_id: UUID, status: ItemStatus) -> bool:
        """Fail a batch of the items with this status; return whether there were any."""
        async with self._database.transaction() as session:
            return bool(await Ledger(session).close(job_id, status, AS_LANES_LOST))

    async def _page(self, after: UUID) -> Sequence[UUID]:
        """Read the ids of bulk jobs in ascending order. A job that is being pruned has no ledger to compare."""
        query = select(Job.id).where(Job.kind.in_(BULK_KINDS), Job.pruned_at.is_(None), Job.id > after)
        async with self._database.transaction() as session:
            return (await session.scalars(query.order_by(Job.id).limit(PAGE))).all()

    async def _state(self, job_id: UUID) -> LedgerState | None:
        """Read counters and ledger by one statement, so that both are of the same moment; None if just pruned."""
        total = func.count(Item.volume_id)
        ledger = (total, *map(_count, (ItemStatus.SUCCEEDED, ItemStatus.FAILED, ItemStatus.SKIPPED)))
        counters = (Job.total, Job.succeeded, Job.failed, Job.skipped)
        unfinished = _count(ItemStatus.PENDING, ItemStatus.CLAIMED)
        query = select(Job.status, *counters, *ledger, unfinished).outerjoin(Item, Item.job_id == Job.id)
        async with self._database.transaction(statement_seconds=_COUNT_SECONDS) as session:
            row = (await session.execute(query.where(Job.id == job_id).group_by(Job.id))).one_or_none()
        return None if row is None else LedgerState(row[0], tuple(row[1:5]), tuple(row[5:9]), row[9])


def _count(*statuses: ItemStatus) -> ColumnElement[int]:
    return func.count(Item.volume_id).filter(Item.status.in_(statuses))


def _compare(job_id: UUID, state: LedgerState) -> Iterator[Finding]:
    subject, has_ended = f"job {job_id}", state.status in ENDED
    if state.counters[0] is None and not has_ended:
        return  # it is being planned
    if state.status is not JobStatus.RUNNING and state.unfinished:
        problem = f"is {state.status}, but {state.unfinished} of its items are not finished"
        yield Finding(CheckCode.ITEMS_UNFINISHED, subject, problem)
    is_pruned = has_ended and state.ledger[0] == 0
    if not is_pruned and state.counters != state.ledger:
        problem = f"has the counters {state.counters}, its ledger {state.ledger} (total, succeeded, failed, skipped)"
        yield Finding(CheckCode.MISCOUNTED, subject, problem)
