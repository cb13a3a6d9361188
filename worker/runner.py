"""Runs jobs: claim one, perform it in a slot, settle its outcome.

Each job runs in a task of its own that is never cancelled. To end a job early, its grant is stopped and its task is
awaited; so a job is released only after its storage thread has really stopped.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import structlog
from structlog.contextvars import bind_contextvars

from domain import metrics
from domain.db.database import is_unreachable
from domain.errors import DatabaseUnavailable
from domain.jobs.attempt import (
    ClaimedJob,
    Failed,
    FenceBehind,
    Outcome,
    Payload,
    Released,
    RetryIn,
    Yielded,
    subject_fields,
)
from domain.jobs.engine import Claim, JobEngine
from domain.jobs.job_spans import processing
from domain.jobs.model import JobMessage
from domain.jobs.transport.job_queue import JobQueue
from domain.logs import log_fields
from domain.storage.context import Grant, StopReason
from worker.performer import AttemptPerformer

_SETTLE_RETRY_SECONDS: Final = 0.5
#: Maximum number of tries to settle a job whose row is locked once the worker is closing; then its lease expires.
_MAX_CLOSING_TRIES: Final = 10
#: Fetch ahead as many jobs as will probably find a slot within this time, which is about the duration of a claim.
_LOOKAHEAD_SECONDS: Final = 0.02
#: Maximum time that a job which was fetched ahead waits for a slot, before it is released to other workers.
_MAX_WAIT_SECONDS: Final = 1.0
#: Maximum interval that is counted, so that one pause does not outweigh a hundred quick jobs; also the initial mean.
_MAX_INTERVAL: Final = 1.0
#: Minimum mean interval, as a divisor.
_MIN_INTERVAL: Final = 1e-6
#: Weight of the latest interval in the moving average.
_SMOOTHING: Final = 1 / 16

log = structlog.get_logger(__name__)


class Execution(NamedTuple):
    """A job that this process has claimed and not settled yet, and the grant that it works under."""

    job: ClaimedJob
    grant: Grant


class Slots:
    """Limits how many jobs run at once.

    The number of jobs to fetch ahead follows from the recent mean interval between releases: as many as slots will
    become free during a claim, but at most the number of slots.
    """

    def __init__(self, number: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.number = number
        self._free = asyncio.Semaphore(number)
        self._clock = clock
        self._released_at = clock()
        self._mean_interval = _MAX_INTERVAL

    @property
    def ahead(self) -> int:
        """How many jobs to fetch beyond the number of slots; 0 while slots are released slowly, or not at all."""
        return min(int(_LOOKAHEAD_SECONDS / max(self._mean_interval, _MIN_INTERVAL)), self.number)

    async def acquire(self) -> bool:
        """Wait for a slot. False: none became free; then nothing is fetched ahead until releases are quick again."""
        if not self._free.locked():  # the common case: a timeout would cost more than the slot itself
            return await self._free.acquire()
        try:
            async with asyncio.timeout(_MAX_WAIT_SECONDS):
                return await self._free.acquire()
        except TimeoutError:
            self._mean_interval = _MAX_INTERVAL
            return False

    def release(self) -> None:
        """Free a slot for the next job."""
        now = self._clock()
        interval = min(now - self._released_at, _MAX_INTERVAL)
        self._mean_interval += (interval - self._mean_interval) * _SMOOTHING
        self._released_at = now
        self._free.release()


class Runner:
    """Runs jobs in slots, and keeps track of those that run."""

    def __init__(
        self, engine: JobEngine, queue: JobQueue, performer: AttemptPerformer, *, slots: int, shares_queue: bool = True
    ) -> None:
        """Prepare a runner of ``slots`` jobs at once; ``shares_queue``: also of those that any worker can do."""
        self._shared: Sequence[None] = [None] if shares_queue else []
        self._engine = engine
        self.queue = queue
        self._performer = performer
        self._slots = Slots(slots)
        self._closing = False
        #: All tasks that handle a message.
        self._handling: set[asyncio.Task[None]] = set()
        #: Those that have a slot or may still need one: all but those that settle an outcome or had nothing to claim.
        self._needing_slot: set[asyncio.Task[Any] | None] = set()
        self.capacity_freed = asyncio.Event()
        #: The jobs that are claimed, until their settlement has returned.
        self.running: dict[UUID, Execution] = {}

    def backends(self) -> Sequence[str | None]:
        """Return the backends whose messages this worker can use now; None stands for those that any worker can use."""
        return [*self._shared, *self._engine.served()]

    def start(self, message: JobMessage) -> "asyncio.Task[None]":
        """Handle a message in a task of its own, which must not be cancelled."""
        task = asyncio.create_task(self.process(message))
        self._handling.add(task)
        self._needing_slot.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._handling.discard(task)
        self._no_longer_needs_slot(task)

    def _no_longer_needs_slot(self, task: "asyncio.Task[None] | None") -> None:
        self._needing_slot.discard(task)
        self.capacity_freed.set()

    async def handle(self, message: JobMessage) -> None:
        """Handle a message for arq, which cancels this call when the worker shuts down: all jobs are released first."""
        task = self.start(message)
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.cancelled():
                    self.release_all()

    async def process(self, message: JobMessage) -> None:
        """Claim, perform, settle."""
        try:
            claim = await self.claim(message)
        finally:
            acknowledged = self.queue.acknowledge(message)  # sent while the job runs
        if claim is None:
            self._no_longer_needs_slot(asyncio.current_task())
        else:
            await self._execute(claim)
        await acknowledged

    async def _execute(self, claim: Claim) -> None:
        """Perform and settle. The slot is only held for the work: the next job uses it while this one is settled."""
        claimed_at = time.monotonic()
        execution = self._register(claim)
        try:
            outcome = await self._perform_in_slot(execution)
            self._no_longer_needs_slot(asyncio.current_task())
            await self.settle(execution.job, outcome, duration=time.monotonic() - claimed_at)
        finally:
            self._unregister(execution)

    async def _perform_in_slot(self, execution: Execution) -> Outcome:
        """Perform a job once a slot is free. If none becomes free, or the worker is closing, release the job."""
        job, grant = execution
        has_slot = await self._slots.acquire()
        try:
            if not has_slot or grant.state.stop_reason is StopReason.SHUTDOWN:
                return Released()
            grant.state.progressed_at = time.monotonic()
            write = log.debug if _is_continued_lane(job) else log.info
            write("job.started", epoch=job.epoch)
            with processing(job) as ended:
                outcome = await self._performer.perform(job, grant)
                ended(outcome)
            return outcome
        finally:
            grant.state.work_ended = True
            if has_slot:
                self._slots.release()

    @property
    def capacity(self) -> int:
        """How many more messages may be handled now: one per slot, and some ahead for slots that will soon be free.

        As many again may be waiting to be settled. When settlements pile up beyond that, the capacity is 0.
        """
        maximum = self._slots.number + self._slots.ahead
        return max(min(maximum - len(self._needing_slot), 2 * maximum - len(self._handling)), 0)

    async def drained(self) -> None:
        """Wait until no message is being handled."""
        while self._handling:
            await asyncio.wait(self._handling)

    def release_all(self) -> None:
        """Claim nothing more, and release each job as soon as its storage work can be stopped."""
        self._closing = True
        for execution in self.running.values():
            execution.grant.stop(StopReason.SHUTDOWN)

    async def close(self) -> None:
        """Release all jobs and wait until they are settled."""
        self.release_all()
        await self.drained()

    async def claim(self, message: JobMessage) -> Claim | None:
        """Claim the job if its epoch is that of the message, and no earlier attempt at it hangs in this process."""
        if self._closing:
            return None
        if self._is_stalled_here(message.job_id):
            log.debug("job.stalled_here", job_id=str(message.job_id))
            return None
        try:
            return await self._engine.claim(message)
        except DatabaseUnavailable:
            # The job is still queued, and maintenance sends the message again. Or it was claimed and only the reply was
            # lost: it is rescued when its lease expires.
            log.warning("claim.postponed", job_id=str(message.job_id))
            return None

    def _is_stalled_here(self, job_id: UUID) -> bool:
        """Return whether storage hangs here over this job: each further attempt would only occupy one more slot.

        The message then counts as lost and is dispatched again: elsewhere, or here once storage responds.
        """
        execution = self.running.get(job_id)
        return execution is not None and execution.grant.state.stalled_at_last_check

    async def settle(self, job: ClaimedJob, outcome: Outcome, *, duration: float) -> None:
        """Settle an outcome, retrying for as long as PostgreSQL is unavailable; settling twice has the effect of once.

        A worker that closes gives up sooner: the lease expires, and the next attempt finds the work done. ``duration``
        is the time from the claim to the outcome in seconds, for the log.
        """
        not_settled, tries = "job.superseded", 0
        while True:
            try:
                settled = await self._engine.settle(job, outcome)
            except DatabaseUnavailable as error:
                tries += 1
                if self._closing and (is_unreachable(error) or tries > _MAX_CLOSING_TRIES):
                    log.warning("job.left_to_lease", outcome=outcome.name)
                    return
                if is_unreachable(error):
                    not_settled = "job.settled_or_superseded"  # it may be settled, and only the reply was lost
                else:
                    log.info("settlement.postponed", tries=tries)  # the row was locked, or the statement timed out
                await asyncio.sleep(_SETTLE_RETRY_SECONDS)
            else:
                break
        if settled:
            metrics.current().attempt_settled(job.kind, duration)
            _log_settled(job, outcome, duration)
        else:
            log.info(not_settled, outcome=outcome.name, **_error_code(outcome))

    def _register(self, claim: Claim) -> Execution:
        """Register a claimed job, and bind its ids to all log lines of this task."""
        job = claim.job
        execution = Execution(job, Grant(job.id, job.fence, claim.deadline))
        if self._closing:  # closing began during the claim
            execution.grant.stop(StopReason.SHUTDOWN)
        if earlier := self.running.get(job.id):  # it lost its lease unnoticed, or was just settled
            earlier.grant.stop(StopReason.LEASE_LOST)
        self.running[job.id] = execution
        ids = log_fields(job_id=job.id, parent_id=job.parent_id, **subject_fields(job))
        bind_contextvars(kind=job.kind, attempt=job.attempt, **ids)
        return execution

    def _unregister(self, execution: Execution) -> None:
        if self.running.get(execution.job.id) is execution:  # otherwise the job was claimed here again
            del self.running[execution.job.id]


def _is_continued_lane(job: ClaimedJob) -> bool:
    """Return whether this is a later slice of a lane. A lane has many slices, so that each is logged at debug only."""
    return job.parent_id is not None and job.epoch > 0 and job.attempt == 1


def _log_settled(job: ClaimedJob, outcome: Outcome, duration: float) -> None:
    """Log a settled attempt: the job's new status, the outcome, and the time in the queue and from claim to outcome.

    A lane that yields has not ended but continues within a second, so that it is logged at debug only.
    """
    write = log.debug if isinstance(outcome, Yielded) else log.info
    if isinstance(outcome, FenceBehind):
        log.warning("fence.raised", refused=tuple(job.fence), stored=tuple(outcome.stored))
    write(
        "job.settled",
        status=outcome.status,
        outcome=outcome.name,
        queue_ms=job.queue_ms,
        duration_ms=round(1000 * duration),
        **_error_code(outcome),
    )


def _error_code(outcome: Outcome) -> Payload:
    return {"code": outcome.error["code"]} if isinstance(outcome, Failed | RetryIn | FenceBehind) else {}
