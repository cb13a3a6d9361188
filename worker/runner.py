"""Runs jobs: claim one, perform it in a slot, settle its outcome.

Each job runs in a task of its own that is never cancelled. To end a job early, its grant is stopped and its task is
awaited; so a job is released only after its storage thread has really stopped.
"""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import UUID

import structlog

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
from domain.logs import Fields, bind_lazily, log_fields
from domain.storage.context import Grant, StopReason
from worker.performer import AttemptPerformer
from worker.slots import Load, Slots

_SETTLE_RETRY_SECONDS: Final = 0.5
#: How long a message whose claim has failed counts as load, if PostgreSQL is unreachable.
_UNREACHABLE_SECONDS: Final = 0.5
#: Maximum number of tries to settle a job whose row is locked once the worker is closing; then its lease expires.
_MAX_CLOSING_TRIES: Final = 10

log = structlog.get_logger(__name__)


class Execution(NamedTuple):
    """A job that this process has claimed and not settled yet, and the grant that it works under."""

    job: ClaimedJob
    grant: Grant


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
        self.load = Load(self._slots)
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        #: The jobs that are claimed, until their settlement has returned.
        self.running: dict[UUID, Execution] = {}

    def backends(self) -> Sequence[str | None]:
        """Return the backends whose messages this worker can use now; None stands for those that any worker can use."""
        return [*self._shared, *self._engine.served()]

    def start(self, messages: Sequence[JobMessage]) -> None:
        """Claim the jobs of these messages, and run each job in a task of its own, which must not be cancelled."""
        self.load.add(len(messages))
        self._in_task(self._claim_and_run(messages))

    async def handle(self, message: JobMessage) -> None:
        """Handle a message for arq, which cancels this call when the worker shuts down: all jobs are released first."""
        task = self._in_task(self.process(message))
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.cancelled():
                    self.release_all()

    async def _claim_and_run(self, messages: Sequence[JobMessage]) -> None:
        """Run the jobs that can be claimed together, and process each message that claimed nothing on its own."""
        claims = [self._engine.submit_claim(message) if self._may_claim(message) else None for message in messages]
        acknowledged = []
        for message, submitted in zip(messages, claims, strict=True):
            if submitted and (claim := await _claim_or_none(submitted)):
                self._in_task(self._run(claim))
                acknowledged.append(self.queue.acknowledge(message))  # sent while the jobs run
            else:
                self._in_task(self._process_counted(message))
        for one in acknowledged:
            await one

    async def process(self, message: JobMessage) -> None:
        """Claim, perform, settle."""
        self.load.add(1)
        await self._process_counted(message)

    async def _process_counted(self, message: JobMessage) -> None:
        claim = await self.claim(message)
        acknowledged = self.queue.acknowledge(message)  # sent while the job runs
        if claim is None:
            self.load.remove(1)
        else:
            await self._run(claim)
        await acknowledged

    async def _run(self, claim: Claim) -> None:
        """Perform and settle. The slot is only held for the work: the next job uses it while this one is settled."""
        claimed_at = time.monotonic()
        try:
            try:
                execution = self._register(claim)
                outcome = await self._perform_in_slot(execution)
            finally:
                self.load.end_work()
            await self.settle(execution.job, outcome, duration=time.monotonic() - claimed_at)
        except Exception:
            log.exception("job.task_failed", job_id=str(claim.job.id))
        finally:
            self._unregister(claim)
            self.load.settle()

    def _in_task(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

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

    async def drained(self) -> None:
        """Wait until no message is being handled."""
        while self._tasks:
            await asyncio.wait(self._tasks)

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
        if not self._may_claim(message):
            if not self._closing:
                log.debug("job.stalled_here", job_id=str(message.job_id))
            return None
        try:
            return await self._engine.claim(message)
        except DatabaseUnavailable as error:
            # The job is still queued, and maintenance sends the message again. Or it was claimed and only the reply was
            # lost: it is rescued when its lease expires.
            log.warning("claim.postponed", job_id=str(message.job_id))
            if is_unreachable(error):  # no further message is fetched instead meanwhile: it would be lost as well
                await asyncio.sleep(_UNREACHABLE_SECONDS)
        except Exception:
            log.exception("job.task_failed", job_id=str(message.job_id))
        return None

    def _may_claim(self, message: JobMessage) -> bool:
        return not self._closing and not self._is_stalled_here(message.job_id)

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
        """Register a claimed job, and add its fields to the log lines of this task."""
        job = claim.job
        execution = Execution(job, Grant(job.id, job.fence, claim.deadline))
        if self._closing:  # closing began during the claim
            execution.grant.stop(StopReason.SHUTDOWN)
        if earlier := self.running.get(job.id):  # it lost its lease unnoticed, or was just settled
            earlier.grant.stop(StopReason.LEASE_LOST)
        self.running[job.id] = execution
        bind_lazily(partial(_job_fields, job))
        return execution

    def _unregister(self, claim: Claim) -> None:
        execution = self.running.get(claim.job.id)
        if execution is not None and execution.job is claim.job:  # otherwise the job was claimed here again
            del self.running[claim.job.id]


async def _claim_or_none(submitted: "asyncio.Future[Claim | None]") -> Claim | None:
    """Wait for a claim. One that fails claims nothing: it is tried again on its own, and logged if it fails again."""
    with suppress(Exception):
        return await submitted
    return None


def _job_fields(job: ClaimedJob) -> Fields:
    ids = log_fields(job_id=job.id, parent_id=job.parent_id, **subject_fields(job))
    return {"kind": job.kind, "attempt": job.attempt, **ids}


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
