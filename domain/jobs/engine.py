"""The job engine of a worker: claim, renew and settle its jobs."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import true
from sqlalchemy.ext.asyncio import AsyncSession

from domain import metrics
from domain.batching import Batcher
from domain.db.database import Database, is_unreachable
from domain.errors import DatabaseUnavailable
from domain.jobs.attempt import (
    Cancelled,
    ClaimedJob,
    Delegated,
    Failed,
    FenceBehind,
    Outcome,
    Released,
    RetryIn,
    Succeeded,
    Superseded,
    Yielded,
)
from domain.jobs.kinds import JobHandlers
from domain.jobs.maintenance import JobMaintenance
from domain.jobs.model import JobMessage, Worker
from domain.jobs.states import ENDED
from domain.jobs.stats import CounterBuffer, CounterName, StatsRepository
from domain.jobs.store.jobs import JobRepository
from domain.jobs.store.leases import MIN_HEARTBEAT_TIMEOUT, LeaseRepository, Progress, Renewal, Settlement
from domain.jobs.store.orphans import rescue_is_safe
from domain.jobs.store.workers import WorkerRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.jobs.webhooks.outbox import record_ended_jobs

#: Maximum number of jobs claimed or settled in one statement.
_MAX_BATCH: Final = 500
#: Number of waiting outcomes from which a second batch is settled beside the one in flight, so that PostgreSQL and this
#: process work at the same time.
_SECOND_BATCH_AT: Final = 100
#: Lock timeout of claims and settlements, in seconds. When it expires in a batch, each item is retried on its own. A
#: single item that times out raises `DatabaseUnavailable`, so that it does not hold up the batcher: a settlement is
#: tried again by its caller, a claim is left until maintenance sends its message again.
_LOCK_TIMEOUT: Final = 0.2
NO_PROGRESS: Final[Mapping[UUID, Progress]] = MappingProxyType({})


class Claim(NamedTuple):
    """A job that this worker holds until ``deadline``, in seconds of this process's monotonic clock."""

    job: ClaimedJob
    deadline: float


@dataclass(frozen=True)
class Renewed:
    """The result of a renewal: leases extended until ``deadline``, and jobs that this worker has lost.

    A job in neither was locked by another transaction; its lease is unchanged.
    """

    renewals: Sequence[Renewal]
    lost: frozenset[UUID]
    deadline: float


class _EndedAttempt(NamedTuple):
    """An attempt that has ended, and the settlement to write to its row."""

    job: ClaimedJob
    outcome: Outcome
    settlement: Settlement


class JobEngine:
    """The job engine of one worker process."""

    def __init__(
        self,
        database: Database,
        queue: JobQueue,
        handlers: JobHandlers,
        *,
        worker: Worker,
        served: Callable[[], Collection[str]],
        lease: float,
        min_heartbeat_timeout: float = MIN_HEARTBEAT_TIMEOUT,
        respect_grace_period: bool = True,
    ) -> None:
        """Prepare the engine; nothing is read before the first call.

        Args:
            database: Where the jobs are.
            queue: Transports the messages.
            handlers: By job kind; jobs of other kinds are left to other workers.
            worker: This process's row in the list of workers.
            served: Returns the names of the backends that this process can use now.
            lease: Length of a lease in seconds.
            min_heartbeat_timeout: Minimum number of seconds that a heartbeat waits for PostgreSQL.
            respect_grace_period: Whether to rescue only when `rescue_is_safe`; only tests turn it off.
        """
        self._database = database
        self._queue = queue
        self._handlers = handlers
        self._worker = worker
        self.served = served
        self._lease = lease
        self._min_heartbeat_timeout = min_heartbeat_timeout
        self._outage_noted = True
        self._counters = CounterBuffer()
        self.maintenance = JobMaintenance(
            database,
            queue,
            handlers,
            self._counters,
            lease=lease,
            rescue_is_safe=rescue_is_safe(worker.id, lease=lease) if respect_grace_period else true(),
        )
        self._claim_batcher = Batcher(self._claim_batch, max_batch=_MAX_BATCH, fails_all=is_unreachable)
        #: Second try of claims that found nothing: most are stale messages, but a row may have been locked just then.
        self._waiting_claim_batcher = Batcher(
            partial(self._claim_batch, lock_timeout=_LOCK_TIMEOUT), max_batch=_MAX_BATCH, fails_all=is_unreachable
        )
        #: One batcher per kind and outcome: each transaction then locks all its volumes in one statement, in one order.
        self._settlement_batchers = defaultdict[tuple[str, type[Outcome]], Batcher[_EndedAttempt, bool]](
            self._settlement_batcher
        )
        #: Number of live workers at the last heartbeat, including this one.
        self.workers = 1

    def _settlement_batcher(self) -> Batcher[_EndedAttempt, bool]:
        send, second = self._settle_batch, _SECOND_BATCH_AT
        return Batcher(send, max_batch=_MAX_BATCH, second_batch_at=second, fails_all=is_unreachable)

    async def claim(self, message: JobMessage) -> Claim | None:
        """Claim the job of this message; return None if it is already claimed, or the message is stale."""
        return await self.submit_claim(message) or await self._waiting_claim_batcher(message)

    def submit_claim(self, message: JobMessage) -> "asyncio.Future[Claim | None]":
        """Claim a job together with others that are submitted now; return the future of what `claim` returns.

        None also stands for a row that is locked, for which `claim` waits.
        """
        return self._claim_batcher.submit(message)

    async def _claim_batch(
        self, messages: Sequence[JobMessage], lock_timeout: float | None = None
    ) -> Sequence[Claim | None]:
        deadline = self._deadline()
        async with self._database.autocommit() as connection:
            jobs = await LeaseRepository(connection).claim(
                messages,
                worker_id=self._worker.id,
                kinds=self.maintenance.kinds,
                backends=self.served(),
                lease=self._lease,
                lock_timeout=lock_timeout,
            )
        if jobs and metrics.current().is_on:
            metrics.current().jobs_claimed((job.kind, job.queue_ms / 1000) for job in jobs)
        claims = {(job.id, job.epoch): Claim(job, deadline) for job in jobs}
        return [claims.pop(message.key, None) for message in messages]  # a message delivered twice gets one claim

    async def settle(self, job: ClaimedJob, outcome: Outcome) -> bool:
        """Record the outcome of an attempt and its effect in one transaction. Returns whether this call recorded it.

        Safe to repeat if the reply to the COMMIT was lost: False then may mean that the earlier call recorded it.
        Otherwise False means that this worker no longer holds the job.
        """
        settlement = _settlement(job, outcome)
        if settlement is None:
            return False
        return await self._settlement_batchers[job.kind, type(outcome)](_EndedAttempt(job, outcome, settlement))

    async def _settle_batch(self, ended: Sequence[_EndedAttempt]) -> Sequence[bool]:
        """Settle attempts of one kind and one outcome.

        A batch has ended when its changes are announced through Redis, which has a timeout; no slot waits for it.
        """
        async with self._database.transaction() as session:
            ours = await LeaseRepository(session).settle(
                [end.settlement for end in ended], worker_id=self._worker.id, lock_timeout=_LOCK_TIMEOUT
            )
            settled = [end for end in ended if end.job.id in ours]
            if settled:
                await self._record_effects(session, settled)
        if settled and settled[0].outcome.status in ENDED:  # all have the same kind and status
            metrics.current().jobs_finished(settled[0].job.kind, settled[0].outcome.status, len(settled))
        await self._count_retries_and_dispatch_due(settled)
        await self._queue.announce(*(end.job.id for end in ended))  # the others may be settled: a reply was lost before
        return [end.job.id in ours for end in ended]

    async def _record_effects(self, session: AsyncSession, settled: Sequence[_EndedAttempt]) -> None:
        """Record the effects of successes; abandon jobs that end otherwise, record their events, raise fences."""
        handler = self._handlers[settled[0].job.kind]
        if succeeded := [(job, out.result) for job, out, _ in settled if isinstance(out, Succeeded | Delegated)]:
            await handler.record(session, succeeded)
        if failed := [(job, out.found) for job, out, _ in settled if isinstance(out, Failed | Cancelled)]:
            await handler.abandon(session, failed)
        if ids := [job.id for job, out, _ in settled if isinstance(out, Failed)]:
            await record_ended_jobs(session, ids)
        if refused := [(job, out.stored) for job, out, _ in settled if isinstance(out, FenceBehind)]:
            await JobRepository(session).raise_fences({job.id: stored for job, stored in refused})
            await handler.raise_fences(session, refused)

    async def _count_retries_and_dispatch_due(self, settled: Sequence[_EndedAttempt]) -> None:
        outcomes = [end.outcome for end in settled]
        retried = [outcome for outcome in outcomes if isinstance(outcome, RetryIn) and not outcome.free]
        self._counters.add(CounterName.RETRIED, len(retried))
        if any(isinstance(outcome, Released | Yielded | Delegated) for outcome in outcomes):
            with suppress(DatabaseUnavailable):  # the jobs are settled; maintenance dispatches what this call could not
                # so that a worker continues these jobs, or starts their lanes, at once
                await self.maintenance.dispatch_due(max_pages=1)

    async def renew(self, job_ids: Collection[UUID], progress: Mapping[UUID, Progress] = NO_PROGRESS) -> Renewed:
        """Record a heartbeat, extend the leases of these jobs, and store the progress of those that copy data."""
        deadline, gap, self._outage_noted = self._deadline(), self._outage_noted, False
        counts = self._counters.pending()
        try:
            async with self._database.transaction(reserved=True) as session:
                leases = LeaseRepository(session)
                await leases.record_heartbeat(
                    self._worker, lease=self._lease, gap=gap, min_timeout=self._min_heartbeat_timeout
                )
                self.workers = await WorkerRepository(session, lease=self._lease).count_alive()
                renewals, lost = await self._renew(leases, job_ids, progress)
                flushed = await StatsRepository(session).add(counts)
        except BaseException:
            self.note_outage()
            raise
        if flushed:
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
        """Record an outage of PostgreSQL: other workers may have been unable to renew their leases, too."""
        self._outage_noted = True

    async def deregister(self) -> None:
        """Remove this worker from the list of workers, and flush its counters."""
        async with self._database.transaction() as session:
            await LeaseRepository(session).delete_worker(self._worker.id)
        if counts := self._counters.pending():
            async with self._database.transaction() as session:
                await StatsRepository(session).lock()
                await StatsRepository(session).add(counts)

    def _deadline(self) -> float:
        """Return the end of a lease by this process's clock.

        Taken before the statement that sets the lease in PostgreSQL, so it is never later than the end stored there.
        """
        return time.monotonic() + self._lease


def _settlement(job: ClaimedJob, outcome: Outcome) -> Settlement | None:
    match outcome:
        case Succeeded(result, copied):
            return Settlement(job.id, job.epoch, outcome.status, result=result, copied=copied)
        case Delegated():
            return Settlement(job.id, job.epoch, outcome.status)
        case Yielded(delay):
            return Settlement(job.id, job.epoch, outcome.status, delay=delay, give_back=job.attempt)
        case RetryIn(delay, error, free):
            return Settlement(job.id, job.epoch, outcome.status, error=error, delay=delay, give_back=int(free))
        case FenceBehind(_, delay, error):
            return Settlement(job.id, job.epoch, outcome.status, error=error, delay=delay, give_back=1)
        case Failed(error):
            return Settlement(job.id, job.epoch, outcome.status, error=error)
        case Released():
            return Settlement(job.id, job.epoch, outcome.status, error=job.error, give_back=1)
        case Cancelled():
            return Settlement(job.id, job.epoch, outcome.status, error=job.error)
        case Superseded():
            return None
