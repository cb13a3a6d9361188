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

from domain.database import Database, is_away
from domain.errors import DatabaseUnavailable
from domain.grouped import Grouped
from domain.jobs.apart import one_by_one
from domain.jobs.kinds import Kinds
from domain.jobs.leases import LeaseRepository, Progress, Renewal, Settlement
from domain.jobs.model import Job, Ring, Worker
from domain.jobs.orders import WorkOrder
from domain.jobs.orphans import OrphanRepository, is_calm
from domain.jobs.outcomes import Cancelled, Done, GaveUp, Handed, Interrupted, Outcome, RetryIn, Superseded, Yielded
from domain.jobs.queue import JobQueue
from domain.jobs.rings import RingRepository
from domain.jobs.signals import CounterName, SignalRepository, Tally
from domain.jobs.states import JobStatus

_PAGE: Final = 500
#: At most so many jobs are claimed or settled by one statement.
_MOST: Final = 200
#: For how many seconds a claim or a settlement waits for a row that somebody has locked. Of many, each goes alone then;
#: one that is alone gives up, and whoever asked comes back: it must not keep a place from others who need not wait.
_PATIENCE: Final = 0.2
#: So many pages in one round, for the others wait meanwhile.
_PAGES: Final = 20
NOTHING_COPIED: Final[Mapping[UUID, Progress]] = MappingProxyType({})


class Claim(NamedTuple):
    """A job that is this worker's until ``deadline``, in seconds of this process's monotonic clock."""

    job: WorkOrder
    deadline: float


@dataclass(frozen=True)
class Renewed:
    """What came of asking for more time: leases that go on until ``deadline``, and jobs that are ours no more.

    A job in neither was locked by somebody at that moment; its lease is as it was.
    """

    renewals: Sequence[Renewal]
    lost: frozenset[UUID]
    deadline: float


class _Ended(NamedTuple):
    """An attempt that has ended, and what is written into its row."""

    job: WorkOrder
    outcome: Outcome
    settlement: Settlement


class Foreman:
    """The job book, as one worker process uses it."""

    def __init__(
        self,
        database: Database,
        queue: JobQueue,
        kinds: Kinds,
        *,
        worker: Worker,
        lease: float,
        waits_for_calm: bool = True,
    ) -> None:
        """``lease`` in seconds; who ``waits_for_calm`` rescues nobody before all live workers could renew."""
        self._database = database
        self._queue = queue
        self._kinds = kinds
        self._worker = worker
        self._lease = lease
        #: How long a message may be on its way before anybody looks whether it still exists.
        self.ring_patience = lease / 3
        self._sure = is_calm(worker.id, lease=lease) if waits_for_calm else true()
        self._afresh = True
        self._tally = Tally()
        self._claims = Grouped(self._claim_all, most=_MOST, is_common=is_away)
        #: What was not to be had at once: mostly rings that are old, but a row may only have been locked for a moment.
        self._late_claims = Grouped(partial(self._claim_all, patience=_PATIENCE), most=_MOST, is_common=is_away)
        #: Kinds and outcomes apart: so each transaction locks the volumes that it is about at once, in one order.
        self._settlements: defaultdict[tuple[str, type[Outcome]], Grouped[_Ended, bool]] = defaultdict(
            lambda: Grouped(self._settle_all, most=_MOST, is_common=is_away)
        )
        #: How many workers there were at the last heartbeat, with this one.
        self.workers = 1

    async def claim(self, ring: Ring) -> Claim | None:
        """Take the job of this ring, unless somebody else has, or the ring is an old one."""
        return await self._claims(ring) or await self._late_claims(ring)

    async def _claim_all(self, rings: Sequence[Ring], patience: float | None = None) -> Sequence[Claim | None]:
        deadline = self._deadline()
        async with self._database.autocommit() as connection:
            jobs = await LeaseRepository(connection).claim(
                rings, worker_id=self._worker.id, kinds=tuple(self._kinds), lease=self._lease, patience=patience
            )
        claims = {job.ring: Claim(job, deadline) for job in jobs}
        return [claims.pop(ring, None) for ring in rings]  # one that was delivered twice is claimed once

    async def settle(self, job: WorkOrder, outcome: Outcome) -> bool:
        """Write down how an attempt ended, and its effect, in one transaction. Returns whether this call did so.

        Safe to repeat when the answer to the COMMIT was lost: then an earlier call may have done it already. Otherwise
        False means that it was no longer ours to end.
        """
        settlement = _settlement(job, outcome)
        if settlement is None:
            return False
        return await self._settlements[job.kind, type(outcome)](_Ended(job, outcome, settlement))

    async def _settle_all(self, ended: Sequence[_Ended]) -> Sequence[bool]:
        """Settle attempts at one kind of job that have ended in the same way.

        The next group waits until Redis has been told too, within bounds; no slot does.
        """
        async with self._database.transaction() as session:
            ours = await LeaseRepository(session).settle(
                [end.settlement for end in ended], worker_id=self._worker.id, patience=_PATIENCE
            )
            settled = [end for end in ended if end.job.id in ours]
            if settled:
                await self._conclude(session, settled)
        await self._follow_up(settled)
        await self._queue.announce(*(end.job.id for end in ended))
        return [end.job.id in ours for end in ended]

    async def _conclude(self, session: AsyncSession, settled: Sequence[_Ended]) -> None:
        """Write down the effects of what is done, and leave usable what was given up."""
        kind = self._kinds[settled[0].job.kind]
        if done := [(job, outcome.result) for job, outcome, _ in settled if isinstance(outcome, Done | Handed)]:
            await kind.record(session, done)
        if given_up := [(job, outcome.found) for job, outcome, _ in settled if isinstance(outcome, GaveUp | Cancelled)]:
            await kind.abandon(session, given_up)

    async def _follow_up(self, settled: Sequence[_Ended]) -> None:
        outcomes = [end.outcome for end in settled]
        retried = [outcome for outcome in outcomes if isinstance(outcome, RetryIn) and not outcome.free]
        self._tally.add(CounterName.RETRIED, len(retried))
        if any(isinstance(outcome, Interrupted | Yielded | Handed) for outcome in outcomes):
            with suppress(DatabaseUnavailable):  # it is settled; housekeeping rings what we could not
                await self.ring_due()  # somebody can go on with it at once, or with its lanes

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NOTHING_COPIED) -> Renewed:
        """Say that we are alive and at these jobs, and how far those are that copy something."""
        deadline, afresh, self._afresh = self._deadline(), self._afresh, False
        counts = self._tally.unwritten()
        try:
            async with self._database.transaction() as session:
                leases = LeaseRepository(session)
                await leases.beat(self._worker, lease=self._lease, afresh=afresh)
                self.workers = await leases.count_workers(self._lease)
                renewals, lost = await self._renew(leases, job_ids, progress)
                written = await SignalRepository(session).add(counts)
        except BaseException:
            self.falter()
            raise
        if written:
            self._tally.written(counts)
        return Renewed(renewals, lost, deadline)

    async def _renew(
        self, leases: LeaseRepository, job_ids: Collection[UUID], progress: Mapping[UUID, Progress]
    ) -> tuple[Sequence[Renewal], frozenset[UUID]]:
        if not job_ids:
            return (), frozenset()
        renewals = await leases.renew(job_ids, progress, worker_id=self._worker.id, lease=self._lease)
        held = await leases.held_among(job_ids, worker_id=self._worker.id)
        return renewals, frozenset(job_ids) - held

    def falter(self) -> None:
        """Note that PostgreSQL was away, so that others may not have been able to renew either."""
        self._afresh = True

    async def say_goodbye(self) -> None:
        """Strike ourselves off the list of workers, with what we have counted."""
        async with self._database.transaction() as session:
            await LeaseRepository(session).forget_worker(self._worker.id)
        if counts := self._tally.unwritten():
            async with self._database.transaction() as session:
                await SignalRepository(session).wait_for_others()
                await SignalRepository(session).add(counts)

    async def rescue(self) -> int:
        """Put the jobs of dead workers back into the queue, or end them if there is no hope. Returns how many."""
        async with self._database.transaction() as session:
            orphans = OrphanRepository(session)
            rescued = await orphans.rescue(_PAGE, sure=self._sure)
            hopeless = await orphans.hopeless(_PAGE, kinds=tuple(self._kinds), sure=self._sure)
            await orphans.forget_silent_workers()
        buried = await one_by_one(self._database, hopeless, self._bury, put_off=_put_off)
        self._tally.add(CounterName.RESCUED, len(rescued) + len(buried))
        for job in buried:
            await self._queue.announce(job.id)
        return len(rescued) + len(buried)

    async def _bury(self, session: AsyncSession, job_id: UUID) -> Job | None:
        job = await OrphanRepository(session).bury(job_id)
        if job is not None:
            await self._kinds[job.kind].abandon(session, [(WorkOrder.of(job), None)])
        return job

    async def ring_due(self) -> int:
        """Ring the jobs whose time has come. Returns how many."""
        async with self._database.transaction() as session:
            due = await RingRepository(session, self._kinds).take_due(_PAGE)
        await self._queue.ring(due)
        return len(due)

    async def ring_lost(self) -> int:
        """Ring again where the message is gone from Redis. Returns how many there were.

        Raises:
            QueueUnavailable: Redis does not answer, so nobody can know.
        """
        lost = 0
        for _ in range(_PAGES):
            async with self._database.transaction() as session:
                rings = RingRepository(session, self._kinds)
                waiting = await rings.take_rung_before(self.ring_patience, _PAGE)
            missing = await self._queue.missing(waiting) if waiting else []
            await self._queue.ring(missing)
            lost += len(missing)
            self._tally.add(CounterName.LOST_RINGS, len(missing))
            if len(missing) < _PAGE:
                break
            # A page of nothing but lost rings: Redis has lost them all, so the next page is looked at right away.
        return lost

    def _deadline(self) -> float:
        """The lease's end by our own clock, reckoned from before PostgreSQL reckons: never later than its own."""
        return time.monotonic() + self._lease


async def _put_off(session: AsyncSession, job_id: UUID) -> None:
    await OrphanRepository(session).put_off(job_id)


def _settlement(job: WorkOrder, outcome: Outcome) -> Settlement | None:
    match outcome:
        case Done(result, copied):
            return Settlement(job.id, job.rings, JobStatus.SUCCEEDED, result=result, copied=copied)
        case Handed():
            return Settlement(job.id, job.rings, JobStatus.RUNNING)
        case Yielded(delay):
            return Settlement(job.id, job.rings, JobStatus.QUEUED, delay=delay, give_back=job.attempt)
        case RetryIn(delay, error, free):
            return Settlement(job.id, job.rings, JobStatus.QUEUED, error=error, delay=delay, give_back=int(free))
        case GaveUp(error):
            return Settlement(job.id, job.rings, JobStatus.FAILED, error=error)
        case Interrupted():
            return Settlement(job.id, job.rings, JobStatus.QUEUED, error=job.error, give_back=1)
        case Cancelled():
            return Settlement(job.id, job.rings, JobStatus.CANCELLED, error=job.error)
        case Superseded():
            return None
