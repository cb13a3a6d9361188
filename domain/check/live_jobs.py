"""Checks live jobs: each must hold its volume or snapshot, and have a worker or lanes if it is running."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from domain.check.findings import REPAIR_COMMAND, CheckCode, Finding, Report, job
from domain.check.rows import PAGE
from domain.db.database import Database
from domain.db.sql import from_now
from domain.jobs.claimed import ClaimedJob
from domain.jobs.kinds import JobHandlers, JobKind
from domain.jobs.model import Job
from domain.jobs.states import LIVE, JobStatus
from domain.jobs.store.jobs import JobRepository
from domain.jobs.store.orphans import OrphanRepository
from domain.jobs.store.parents import is_without_lanes
from domain.operations import SnapshotState
from domain.snapshots.model import Snapshot
from domain.volumes.model import Volume

#: A job is reported when its lease ended this many leases ago; workers rescue the jobs of a crashed worker earlier.
OVERDUE_LEASES: Final = 10
_START_WORKER: Final = "start a worker"
_LEASED: Final = "a worker may be working on it: check again when it has ended"
NOT_HELD: Final = {
    "code": "not-held",
    "detail": "The job did not hold its volume or snapshot; `cistern check --repair` ended it.",
}


class JobState(NamedTuple):
    """A live job and what may be wrong with it; ``expired_seconds``: how long ago its lease ended."""

    id: UUID
    kind: str
    status: JobStatus
    version: int
    leased: bool
    holds_subject: bool
    expired_seconds: float
    without_lanes: bool


class LiveJobs:
    """Checks all jobs that have not ended."""

    def __init__(self, database: Database, handlers: JobHandlers, *, lease: float) -> None:
        """``lease`` in seconds."""
        self._database = database
        self._handlers = handlers
        self._overdue_seconds = OVERDUE_LEASES * lease

    async def findings(self, report: Report, *, repair: bool) -> AsyncIterator[Finding]:
        """Yield the findings about live jobs, repaired where possible if ``repair``."""
        after: UUID | None = None
        while page := await self._page(after):
            after = page[-1].id
            report.checked["live jobs"] += len(page)
            for state in page:
                finding = self._finding(state)
                if finding is not None and repair and finding.repairable:
                    finding = finding.as_repaired() if await self._repair(state, finding.code) else None
                if finding is not None:
                    yield finding

    def _finding(self, state: JobState) -> Finding | None:
        subject = job(state.id)
        if not state.holds_subject:
            known = state.kind in self._handlers
            remedy = _LEASED if state.leased else REPAIR_COMMAND if known else "start a worker that knows this kind"
            problem = f"{state.kind} is {state.status}, but does not hold its volume or snapshot"
            return Finding(CheckCode.NOT_HELD, subject, problem, remedy)
        if state.expired_seconds > self._overdue_seconds:
            problem = f"{state.kind} lost its worker {state.expired_seconds:.0f} s ago"
            return Finding(CheckCode.NO_WORKER, subject, problem)
        if state.without_lanes:
            problem = f"{state.kind} has no lane left, and no worker has given it a new one"
            return Finding(CheckCode.NO_LANES, subject, problem, _START_WORKER)
        return None

    async def _repair(self, state: JobState, code: CheckCode) -> bool:
        """Requeue the job as maintenance does with an orphan, or fail it; False if it has changed since it was read."""
        async with self._database.transaction() as session:
            locked = await JobRepository(session).get_for_update(state.id)
            if locked is None or locked.version != state.version:
                return False
            if code is CheckCode.NO_WORKER:
                await OrphanRepository(session).requeue(locked.id)
            else:
                await self._fail(session, locked)
        return True

    async def _fail(self, session: AsyncSession, locked: Job) -> None:
        locked.version, locked.lease_expires_at = locked.version + 1, None
        locked.status, locked.error, locked.finished_at = JobStatus.FAILED, NOT_HELD, func.now()
        await session.flush()
        await self._handlers[locked.kind].abandon(session, [(ClaimedJob.from_row(locked), None)])

    async def _page(self, after: UUID | None) -> Sequence[JobState]:
        async with self._database.transaction() as session:
            return await LiveJobRepository(session).page(after, PAGE, overdue_seconds=self._overdue_seconds)


class LiveJobRepository:
    """Reads live jobs and their subjects by one statement, so that all are of the same moment."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def page(self, after: UUID | None, limit: int, *, overdue_seconds: float) -> Sequence[JobState]:
        """Read ``limit`` jobs in ascending order of id; a parent may be without lanes for ``overdue_seconds``."""
        query = (
            select(
                *(Job.id, Job.kind, Job.status, Job.version),
                func.coalesce(Job.lease_expires_at > func.now(), literal(value=False)),
                and_(_has_volume(), _has_snapshot()),
                func.coalesce(func.extract("epoch", func.now() - Job.lease_expires_at), 0.0),
                _long_without_lanes(overdue_seconds),
            )
            .outerjoin(Volume, Volume.id == Job.volume_id)
            .outerjoin(Snapshot, Snapshot.id == Job.snapshot_id)
            .where(Job.status.in_(LIVE))
            .order_by(Job.id)
            .limit(limit)
        )
        query = query if after is None else query.where(Job.id > after)
        return [JobState(*row) for row in await self._session.execute(query)]


def _has_volume() -> ColumnElement[bool]:
    return or_(Job.volume_id.is_(None), func.coalesce(Volume.job_id == Job.id, literal(value=False)))


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
