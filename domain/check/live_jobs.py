"""Live jobs: does each have what it is about in its hands, and does anybody still work on it?"""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from domain.check.findings import REPAIR_COMMAND, CheckCode, Finding, Report, job
from domain.check.rows import CLONE, PAGE
from domain.db.database import Database
from domain.db.sql import from_now
from domain.jobs.claimed import ClaimedJob
from domain.jobs.kinds import Kinds
from domain.jobs.model import Job
from domain.jobs.states import LIVE, JobStatus
from domain.jobs.store.jobs import JobRepository
from domain.jobs.store.orphans import OrphanRepository
from domain.jobs.store.parents import is_without_lanes
from domain.snapshots.model import Snapshot
from domain.snapshots.states import SnapshotState
from domain.volumes.model import Volume

#: So many leases without a sign of life are more than a crash.
SILENT_LEASES: Final = 10
_START: Final = "start a worker"
_LEASED: Final = "a worker is at it: check again when it has ended"
NOT_HELD: Final = {
    "code": "not-held",
    "detail": "The job did not have what it was about; an inspection ended it.",
}


class JobState(NamedTuple):
    """What is wrong with one live job, if anything; ``silent``: for how many seconds its lease has been over."""

    id: UUID
    kind: str
    status: JobStatus
    version: int
    leased: bool
    in_hand: bool
    silent: float
    forsaken: bool


class LiveJobs:
    """Looks through all jobs that have not ended."""

    def __init__(self, database: Database, kinds: Kinds, *, lease: float) -> None:
        """``lease`` in seconds."""
        self._database = database
        self._kinds = kinds
        self._patience = SILENT_LEASES * lease

    async def findings(self, report: Report, *, repair: bool) -> AsyncIterator[Finding]:
        """Tell what is wrong with them, mended if it can be and ``repair`` is asked for."""
        after: UUID | None = None
        while page := await self._page(after):
            after = page[-1].id
            report.looked_at["live jobs"] += len(page)
            for state in page:
                finding = self._judge(state)
                if finding is not None and repair and finding.repairable:
                    finding = finding.as_repaired() if await self._mend(state, finding.code) else None
                if finding is not None:
                    yield finding

    def _judge(self, state: JobState) -> Finding | None:
        name = job(state.id)
        if not state.in_hand:
            known = state.kind in self._kinds
            remedy = _LEASED if state.leased else REPAIR_COMMAND if known else "start a worker that knows this kind"
            return Finding(CheckCode.NOT_HELD, name, f"{state.kind} is {state.status} without what it is about", remedy)
        if state.silent > self._patience:
            return Finding(CheckCode.NO_WORKER, name, f"{state.kind} lost its worker {state.silent:.0f} s ago")
        if state.forsaken:
            problem = f"{state.kind} has no lane left, and no worker has given it a new one"
            return Finding(CheckCode.NO_LANES, name, problem, _START)
        return None

    async def _mend(self, state: JobState, code: CheckCode) -> bool:
        """Do as housekeeping does with an orphan, or end the job; False if it has moved since it was looked at."""
        async with self._database.transaction() as session:
            found = await JobRepository(session).get_for_update(state.id)
            if found is None or found.version != state.version:
                return False
            if code is CheckCode.NO_WORKER:
                await OrphanRepository(session).requeue(found.id)
            else:
                await self._end(session, found)
        return True

    async def _end(self, session: AsyncSession, found: Job) -> None:
        found.version, found.lease_expires_at = found.version + 1, None
        found.status, found.error, found.finished_at = JobStatus.FAILED, NOT_HELD, func.now()
        await session.flush()
        await self._kinds[found.kind].abandon(session, [(ClaimedJob.from_row(found), None)])

    async def _page(self, after: UUID | None) -> Sequence[JobState]:
        async with self._database.transaction() as session:
            return await LiveJobRepository(session).page(after, PAGE, patience=self._patience)


class LiveJobRepository:
    """Live jobs and what they are about, seen from one transaction, by one statement: so all of one moment."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def page(self, after: UUID | None, limit: int, *, patience: float) -> Sequence[JobState]:
        """Read ``limit`` of them, upwards by id. ``patience`` in seconds: how long a whole may be without lanes."""
        query = (
            select(
                *(Job.id, Job.kind, Job.status, Job.version),
                func.coalesce(Job.lease_expires_at > func.now(), literal(value=False)),
                and_(_has_volume(), _has_snapshot()),
                func.coalesce(func.extract("epoch", func.now() - Job.lease_expires_at), 0.0),
                _forsaken(patience),
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
    """Whether a job has its snapshot; those that clone share it."""
    shared: Any = and_(Job.kind == CLONE, Snapshot.state == SnapshotState.CLONING)
    own = func.coalesce(or_(Snapshot.job_id == Job.id, shared), literal(value=False))
    return or_(Job.snapshot_id.is_(None), own)


def _forsaken(patience: float) -> ColumnElement[bool]:
    """Whether a job is forsaken, and nobody has given it new lanes for so long."""
    lane = aliased(Job)
    lanes = select(func.max(lane.finished_at)).where(lane.parent_id == Job.id).correlate(Job).scalar_subquery()
    since = func.coalesce(lanes, Job.started_at)
    return and_(is_without_lanes(), since < from_now(-patience))
