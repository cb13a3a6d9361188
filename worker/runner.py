"""Runs jobs: claim one, perform it in a slot, settle its outcome.

Each job runs in a task of its own that is never cancelled. To end a job early, its grant is stopped and its task is
awaited; so a job is released only after its storage thread has really stopped.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from uuid import UUID

import structlog
from structlog.contextvars import bind_contextvars

from domain.db.database import is_unreachable
from domain.errors import DatabaseUnavailable
from domain.jobs.claimed import ClaimedJob
from domain.jobs.engine import Claim, JobEngine
from domain.jobs.model import Dispatch
from domain.jobs.outcomes import (
    Cancelled,
    Delegated,
    Failed,
    Outcome,
    Payload,
    Released,
    RetryIn,
    Succeeded,
    Superseded,
    Yielded,
)
from domain.jobs.transport.job_queue import JobQueue
from domain.logs import log_fields
from domain.storage.context import Fence, Grant, StopReason
from worker.attempts import Attempts
from worker.slots import Slots

_SETTLE_RETRY_SECONDS: Final = 0.5
#: Maximum number of tries to settle a job whose row is locked once the worker is closing; then its lease expires.
_MAX_CLOSING_TRIES: Final = 10
#: Outcomes as the log names them.
_OUTCOME_NAMES: Final[Mapping[type[Outcome], str]] = {
    Succeeded: "succeeded",
    Delegated: "delegated",
    Yielded: "yielded",
    RetryIn: "retry",
    Failed: "failed",
    Released: "released",
    Cancelled: "cancelled",
    Superseded: "superseded",
}

log = structlog.get_logger(__name__)


class Running(NamedTuple):
    """A job that this process has claimed and not settled yet, and the grant that it works under."""

    job: ClaimedJob
    grant: Grant


class Runner:
    """Runs jobs in slots, and keeps track of those that run."""

    def __init__(self, engine: JobEngine, queue: JobQueue, attempts: Attempts, *, slots: int) -> None:
        """Prepare a runner of at most ``slots`` jobs at once."""
        self._engine = engine
        self.queue = queue
        self._attempts = attempts
        self._slots = Slots(slots)
        self._closing = False
        #: All tasks that handle a dispatch.
        self._handling: set[asyncio.Task[None]] = set()
        #: Those that have a slot or may still need one: all but those that settle an outcome.
        self._not_settling: set[asyncio.Task[Any] | None] = set()
        self.capacity_freed = asyncio.Event()
        self.running: dict[UUID, Running] = {}

    def start(self, dispatch: Dispatch) -> "asyncio.Task[None]":
        """Handle a dispatch in a task of its own, which must not be cancelled."""
        task = asyncio.create_task(self.run(dispatch))
        self._handling.add(task)
        self._not_settling.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._handling.discard(task)
        self._free_capacity(task)

    def _free_capacity(self, task: "asyncio.Task[None] | None") -> None:
        self._not_settling.discard(task)
        self.capacity_freed.set()

    async def handle(self, dispatch: Dispatch) -> None:
        """Handle a dispatch. Cancelling this call means that the worker shuts down: all jobs are released first."""
        task = self.start(dispatch)
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if not task.cancelled():
                    self.release_all()

    async def run(self, dispatch: Dispatch) -> None:
        """Claim, perform, settle."""
        try:
            claim = await self.claim(dispatch)
        finally:
            acknowledged = self.queue.acknowledge(dispatch)  # sent while the job runs
        if claim is None:
            self._free_capacity(asyncio.current_task())
        else:
            await self._execute(claim)
        await acknowledged

    async def _execute(self, claim: Claim) -> None:
        """Perform and settle. The slot is only held for the work: the next job uses it while this one is settled."""
        claimed_at = time.monotonic()
        run = self._start_execution(claim)
        try:
            outcome = await self._perform_in_slot(run)
            self._free_capacity(asyncio.current_task())
            await self.settle(run.job, outcome, duration=time.monotonic() - claimed_at)
        finally:
            self._end_execution(run)

    async def _perform_in_slot(self, run: Running) -> Outcome:
        """Perform a job once a slot is free. If none becomes free, or the worker is closing, release the job."""
        job, grant = run
        has_slot = await self._slots.acquire()
        try:
            if not has_slot or grant.lease.stop_reason is StopReason.SHUTDOWN:
                return Released()
            grant.lease.progressed_at = time.monotonic()
            write = log.debug if _is_continued_lane(job) else log.info
            write("job.started", epoch=job.epoch)
            return await self._attempts.perform(job, grant)
        finally:
            grant.lease.over = True
            if has_slot:
                self._slots.release()

    @property
    def capacity(self) -> int:
        """How many more dispatches may be handled now: one per slot, and some ahead for slots that will soon be free.

        As many again may be waiting to be settled. When settlements pile up beyond that, the capacity is 0.
        """
        maximum = self._slots.number + self._slots.ahead
        return max(min(maximum - len(self._not_settling), 2 * maximum - len(self._handling)), 0)

    async def drained(self) -> None:
        """Wait until no dispatch is being handled."""
        while self._handling:
            await asyncio.wait(self._handling)

    def release_all(self) -> None:
        """Claim nothing more, and release each job as soon as its storage work can be stopped."""
        self._closing = True
        for run in self.running.values():
            run.grant.stop(StopReason.SHUTDOWN)

    async def close(self) -> None:
        """Release all jobs and wait until they are settled."""
        self.release_all()
        await self.drained()

    async def claim(self, dispatch: Dispatch) -> Claim | None:
        """Claim the job if its epoch is that of the dispatch, and no earlier attempt at it hangs in this process."""
        if self._closing:
            return None
        if self._is_stalled_here(dispatch.job_id):
            log.debug("job.stalled_here", job_id=str(dispatch.job_id))
            return None
        try:
            return await self._engine.claim(dispatch)
        except DatabaseUnavailable:
            log.warning("claim.postponed", job_id=str(dispatch.job_id))  # still queued; maintenance dispatches it again
            return None

    def _is_stalled_here(self, job_id: UUID) -> bool:
        """Return whether storage hangs here over this job: each further attempt would only occupy one more slot.

        The message then counts as lost and is dispatched again: elsewhere, or here once storage responds.
        """
        run = self.running.get(job_id)
        return run is not None and run.grant.lease.stalled

    async def settle(self, job: ClaimedJob, outcome: Outcome, *, duration: float) -> None:
        """Settle an outcome, retrying for as long as PostgreSQL is unavailable; settling twice has the effect of once.

        A worker that closes gives up sooner: the lease expires, and the next attempt finds the work done. ``duration``
        is the time from the claim to the outcome in seconds, for the log.
        """
        refused_event, tries = "job.superseded", 0
        while True:
            try:
                settled = await self._engine.settle(job, outcome)
            except DatabaseUnavailable as error:
                tries += 1
                if self._closing and (is_unreachable(error) or tries > _MAX_CLOSING_TRIES):
                    log.warning("job.settle_abandoned", outcome=_OUTCOME_NAMES[type(outcome)])
                    return
                if is_unreachable(error):
                    refused_event = "job.settled_or_superseded"  # it may be settled, and only the reply was lost
                else:
                    log.info("settlement.postponed", tries=tries)  # the row was locked, or the statement timed out
                await asyncio.sleep(_SETTLE_RETRY_SECONDS)
            else:
                break
        if settled:
            _log_settled(job, outcome, duration)
        else:
            log.info(refused_event, outcome=_OUTCOME_NAMES[type(outcome)], **_error_code(outcome))

    def _start_execution(self, claim: Claim) -> Running:
        """Register a claimed job, and bind its ids to all log lines of this task."""
        job = claim.job
        run = Running(job, Grant(job.id, Fence(*job.fence), claim.deadline))
        if self._closing:  # closing began during the claim
            run.grant.stop(StopReason.SHUTDOWN)
        if earlier := self.running.get(job.id):  # its lease was lost, which the heartbeat has not noticed yet
            earlier.grant.stop(StopReason.LEASE_LOST)
        self.running[job.id] = run
        ids = log_fields(job_id=job.id, parent_id=job.parent_id, volume_id=job.volume_id, snapshot_id=job.snapshot_id)
        bind_contextvars(kind=job.kind, attempt=job.attempt, **ids)
        return run

    def _end_execution(self, run: Running) -> None:
        if self.running.get(run.job.id) is run:  # otherwise the job was lost, and claimed here again
            del self.running[run.job.id]


def _is_continued_lane(job: ClaimedJob) -> bool:
    """Return whether this is a later slice of a lane. A lane has many slices, so that each is logged at debug only."""
    return job.parent_id is not None and job.epoch > 0 and job.attempt == 1


def _log_settled(job: ClaimedJob, outcome: Outcome, duration: float) -> None:
    """Log a settled attempt: the job's new status, the outcome, and the time in the queue and from claim to outcome.

    A lane that yields has not ended but continues within a second, so that it is logged at debug only.
    """
    write = log.debug if isinstance(outcome, Yielded) else log.info
    write(
        "job.settled",
        status=outcome.status,
        outcome=_OUTCOME_NAMES[type(outcome)],
        queue_ms=job.queue_ms,
        duration_ms=round(1000 * duration),
        **_error_code(outcome),
    )


def _error_code(outcome: Outcome) -> Payload:
    return {"code": outcome.error["code"]} if isinstance(outcome, Failed | RetryIn) else {}
