"""What workers ask of the job book: claim, renew, settle, and the rounds that housekeeping makes."""

import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import true
from sqlalchemy.ext.asyncio import AsyncSession

from domain.batching import Batcher
from domain.db.database import Database, is_unreachable
from domain.errors import DatabaseUnavailable
from domain.jobs.claimed import ClaimedJob
from domain.jobs.isolation import each_in_own_transaction
from domain.jobs.kinds import Kinds
from domain.jobs.model import Dispatch, Job, Worker
from domain.jobs.outcomes import (
    Cancelled,
    Delegated,
    Failed,
    Outcome,
    Released,
    RetryIn,
    Succeeded,
    Superseded,
    Yielded,
)
from domain.jobs.states import JobStatus
from domain.jobs.stats import CounterBuffer, CounterName, StatsRepository
from domain.jobs.store.dispatch import DispatchRepository
from domain.jobs.store.leases import MIN_HEARTBEAT_TIMEOUT, LeaseRepository, Progress, Renewal, Settlement
from domain.jobs.store.orphans import OrphanRepository, rescue_is_safe
from domain.jobs.transport.job_queue import JobQueue

_PAGE_SIZE: Final = 500
#: At most so many jobs are claimed or settled by one statement.
_MAX_BATCH: Final = 200
#: For how many seconds a claim or a settlement waits for a row that somebody has locked. Of many, each goes alone then;
#: one that is alone gives up, and whoever asked comes back: it must not keep a place from others who need not wait.
_LOCK_TIMEOUT: Final = 0.2
#: So many pages in one round, for the others wait meanwhile.
_MAX_PAGES: Final = 20
NOTHING_COPIED: Final[Mapping[UUID, Progress]] = MappingProxyType({})


class Claim(NamedTuple):
    """A job that is this worker's until ``deadline``, in seconds of this process's monotonic clock."""

    job: ClaimedJob
    deadline: float


@dataclass(frozen=True)
class Renewed:
    """What came of asking for more time: leases that go on until ``deadline``, and jobs that are ours no more.

    A job in neither was locked by somebody at that moment; its lease is as it was.
    """

    renewals: Sequence[Renewal]
    lost: frozenset[UUID]
    deadline: float


class _EndedAttempt(NamedTuple):
    """An attempt that has ended, and what is written into its row."""

    job: ClaimedJob
    outcome: Outcome
    settlement: Settlement


class JobEngine:
    """The job book, as one worker process uses it."""

    def __init__(
        self,
        database: Database,
        queue: JobQueue,
        kinds: Kinds,
        *,
        worker: Worker,
        lease: float,
        min_heartbeat_timeout: float = MIN_HEARTBEAT_TIMEOUT,
        respect_grace_period: bool = True,
    ) -> None:
        """``lease`` in seconds; who ``waits_for_calm`` rescues nobody before all live workers could renew."""
        self._database = database
        self._queue = queue
        self._kinds = kinds
        self._worker = worker
        self._lease = lease
        self._min_heartbeat_timeout = min_heartbeat_timeout
        #: How long a message may be on its way before anybody looks whether it still exists.
        self.redispatch_after = lease / 3
        self._rescue_is_safe = rescue_is_safe(worker.id, lease=lease) if respect_grace_period else true()
        self._outage_noted = True
        self._counters = CounterBuffer()
        self._claims = Batcher(self._claim_batch, max_batch=_MAX_BATCH, fails_all=is_unreachable)
        #: What was not to be had at once: mostly rings that are old, but a row may only have been locked for a moment.
        self._claims_of_locked_rows = Batcher(
            partial(self._claim_batch, lock_timeout=_LOCK_TIMEOUT), max_batch=_MAX_BATCH, fails_all=is_unreachable
        )
        #: Kinds and outcomes apart: so each transaction locks the volumes that it is about at once, in one order.
        self._settlements: defaultdict[tuple[str, type[Outcome]], Batcher[_EndedAttempt, bool]] = defaultdict(
            lambda: Batcher(self._settle_batch, max_batch=_MAX_BATCH, fails_all=is_unreachable)
        )
        #: How many workers there were at the last heartbeat, with this one.
        self.workers = 1

    async def claim(self, dispatch: Dispatch) -> Claim | None:
        """Take the job of this ring, unless somebody else has, or the ring is an old one."""
        return await self._claims(dispatch) or await self._claims_of_locked_rows(dispatch)

    async def _claim_batch(
        self, dispatches: Sequence[Dispatch], lock_timeout: float | None = None
    ) -> Sequence[Claim | None]:
        deadline = self._deadline()
        async with self._database.autocommit() as connection:
            jobs = await LeaseRepository(connection).claim(
                dispatches,
                worker_id=self._worker.id,
                kinds=tuple(self._kinds),
                lease=self._lease,
                lock_timeout=lock_timeout,
            )
        claims = {job.dispatch: Claim(job, deadline) for job in jobs}
        return [claims.pop(dispatch, None) for dispatch in dispatches]  # one that was delivered twice is claimed once

    async def settle(self, job: ClaimedJob, outcome: Outcome) -> bool:
        """Write down how an attempt ended, and its effect, in one transaction. Returns whether this call did so.

        Safe to repeat when the answer to the COMMIT was lost: then an earlier call may have done it already. Otherwise
        False means that it was no longer ours to end.
        """
        settlement = _settlement(job, outcome)
        if settlement is None:
            return False
        return await self._settlements[job.kind, type(outcome)](_EndedAttempt(job, outcome, settlement))

    async def _settle_batch(self, ended: Sequence[_EndedAttempt]) -> Sequence[bool]:
        """Settle attempts at one kind of job that have ended in the same way.

        The next group waits until Redis has been told too, within bounds; no slot does.
        """
        async with self._database.transaction() as session:
            ours = await LeaseRepository(session).settle(
                [end.settlement for end in ended], worker_id=self._worker.id, lock_timeout=_LOCK_TIMEOUT
            )
            settled = [end for end in ended if end.job.id in ours]
            if settled:
                await self._record_effects(session, settled)
        await self._after_settling(settled)
        await self._queue.announce(*(end.job.id for end in ended))
        return [end.job.id in ours for end in ended]

    async def _record_effects(self, session: AsyncSession, settled: Sequence[_EndedAttempt]) -> None:
        """Write down the effects of what is done, and leave usable what was given up."""
        kind = self._kinds[settled[0].job.kind]
        if done := [(job, outcome.result) for job, outcome, _ in settled if isinstance(outcome, Succeeded | Delegated)]:
            await kind.record(session, done)
        if given_up := [(job, outcome.found) for job, outcome, _ in settled if isinstance(outcome, Failed | Cancelled)]:
            await kind.abandon(session, given_up)

    async def _after_settling(self, settled: Sequence[_EndedAttempt]) -> None:
        outcomes = [end.outcome for end in settled]
        retried = [outcome for outcome in outcomes if isinstance(outcome, RetryIn) and not outcome.free]
        self._counters.add(CounterName.RETRIED, len(retried))
        if any(isinstance(outcome, Released | Yielded | Delegated) for outcome in outcomes):
            with suppress(DatabaseUnavailable):  # it is settled; housekeeping rings what we could not
                await self.dispatch_due()  # somebody can go on with it at once, or with its lanes

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NOTHING_COPIED) -> Renewed:
        """Say that we are alive and at these jobs, and how far those are that copy something."""
        deadline, gap, self._outage_noted = self._deadline(), self._outage_noted, False
        counts = self._counters.pending()
        try:
            async with self._database.transaction() as session:
                leases = LeaseRepository(session)
                await leases.record_heartbeat(
                    self._worker, lease=self._lease, afresh=gap, min_timeout=self._min_heartbeat_timeout
                )
                self.workers = await leases.count_workers(self._lease)
                renewals, lost = await self._renew(leases, job_ids, progress)
                written = await StatsRepository(session).add(counts)
        except BaseException:
            self.note_outage()
            raise
        if written:
            self._counters.flushed(counts)
        return Renewed(renewals, lost, deadline)

    async def _renew(
        self, leases: LeaseRepository, job_ids: Collection[UUID], progress: Mapping[UUID, Progress]
    ) -> tuple[Sequence[Renewal], frozenset[UUID]]:
        if not job_ids:
            return (), frozenset()
        renewals = await leases.renew(job_ids, progress, worker_id=self._worker.id, lease=self._lease)
        held = await leases.held_by(job_ids, worker_id=self._worker.id)
        return renewals, frozenset(job_ids) - held

    def note_outage(self) -> None:
        """Note that PostgreSQL was away, so that others may not have been able to renew either."""
        self._outage_noted = True

    async def deregister(self) -> None:
        """Strike ourselves off the list of workers, with what we have counted."""
        async with self._database.transaction() as session:
            await LeaseRepository(session).delete_worker(self._worker.id)
        if counts := self._counters.pending():
            async with self._database.transaction() as session:
                await StatsRepository(session).lock()
                await StatsRepository(session).add(counts)

    async def rescue(self) -> int:
        """Put the jobs of dead workers back into the queue, or end them if there is no hope. Returns how many."""
        async with self._database.transaction() as session:
            orphans = OrphanRepository(session)
            rescued = await orphans.rescue(_PAGE_SIZE, sure=self._rescue_is_safe)
            exhausted = await orphans.exhausted(_PAGE_SIZE, kinds=tuple(self._kinds), sure=self._rescue_is_safe)
            await orphans.delete_silent_workers()
        failed = await each_in_own_transaction(self._database, exhausted, self._fail_orphan, on_error=_defer)
        self._counters.add(CounterName.RESCUED, len(rescued) + len(failed))
        for job in failed:
            await self._queue.announce(job.id)
        return len(rescued) + len(failed)

    async def _fail_orphan(self, session: AsyncSession, job_id: UUID) -> Job | None:
        job = await OrphanRepository(session).fail(job_id)
        if job is not None:
            await self._kinds[job.kind].abandon(session, [(ClaimedJob.from_row(job), None)])
        return job

    async def dispatch_due(self) -> int:
        """Ring the jobs whose time has come. Returns how many."""
        async with self._database.transaction() as session:
            due = await DispatchRepository(session, self._kinds).mark_due(_PAGE_SIZE)
        await self._queue.dispatch(due)
        return len(due)

    async def redispatch_lost(self) -> int:
        """Ring again where the message is gone from Redis. Returns how many there were.

        Raises:
            QueueUnavailable: Redis does not answer, so nobody can know.
        """
        lost = 0
        for _ in range(_MAX_PAGES):
            async with self._database.transaction() as session:
                dispatches = DispatchRepository(session, self._kinds)
                waiting = await dispatches.mark_dispatched_before(self.redispatch_after, _PAGE_SIZE)
            missing = await self._queue.missing(waiting) if waiting else []
            await self._queue.dispatch(missing)
            lost += len(missing)
            self._counters.add(CounterName.LOST_MESSAGES, len(missing))
            if len(missing) < _PAGE_SIZE:
                break
            # A page of nothing but lost rings: Redis has lost them all, so the next page is looked at right away.
        return lost

    def _deadline(self) -> float:
        """The lease's end by our own clock, reckoned from before PostgreSQL reckons: never later than its own."""
        return time.monotonic() + self._lease


async def _defer(session: AsyncSession, job_id: UUID) -> None:
    await OrphanRepository(session).defer(job_id)


def _settlement(job: ClaimedJob, outcome: Outcome) -> Settlement | None:
    match outcome:
        case Succeeded(result, copied):
            return Settlement(job.id, job.epoch, JobStatus.SUCCEEDED, result=result, copied=copied)
        case Delegated():
            return Settlement(job.id, job.epoch, JobStatus.RUNNING)
        case Yielded(delay):
            return Settlement(job.id, job.epoch, JobStatus.QUEUED, delay=delay, give_back=job.attempt)
        case RetryIn(delay, error, free):
            return Settlement(job.id, job.epoch, JobStatus.QUEUED, error=error, delay=delay, give_back=int(free))
        case Failed(error):
            return Settlement(job.id, job.epoch, JobStatus.FAILED, error=error)
        case Released():
            return Settlement(job.id, job.epoch, JobStatus.QUEUED, error=job.error, give_back=1)
        case Cancelled():
            return Settlement(job.id, job.epoch, JobStatus.CANCELLED, error=job.error)
        case Superseded():
            return None
