"""One job, as a sentence: claim it, perform it, settle it.

The work runs in a task of its own that nobody cancels: whoever wants its end tells its grant, and waits. So a job is
handed back only when its storage thread has really stopped.
"""

import asyncio
import time
from typing import Any, Final, NamedTuple
from uuid import UUID

import structlog

from domain.db.database import is_unreachable
from domain.errors import DatabaseUnavailable
from domain.jobs.claimed import ClaimedJob
from domain.jobs.engine import Claim, JobEngine
from domain.jobs.model import Dispatch
from domain.jobs.outcomes import Failed, Outcome, Payload, Released, RetryIn, Yielded
from domain.jobs.transport.job_queue import JobQueue
from domain.logs import speak_of
from domain.storage.context import Fence, Grant, StopReason
from worker.attempts import Attempts
from worker.slots import Slots

_SETTLE_RETRY_SECONDS: Final = 0.5
#: How often whoever closes has tried for a row that others have locked, before it is left to its lease.
_MAX_CLOSING_TRIES: Final = 10

log = structlog.get_logger(__name__)


class Running(NamedTuple):
    """A job in the hands of this process, at work or about to be, and the leave that it works under."""

    job: ClaimedJob
    grant: Grant


class Runner:
    """Carries out jobs; knows which ones are at work here."""

    def __init__(self, engine: JobEngine, queue: JobQueue, attempts: Attempts, *, slots: int) -> None:
        """``slots``: how many jobs may be at work at once."""
        self._engine = engine
        self.queue = queue
        self._attempts = attempts
        self._slots = Slots(slots)
        self._closing = False
        #: Every ring that is being answered.
        self._handling: set[asyncio.Task[None]] = set()
        #: Those among them that have a slot, or may yet want one: all but those whose outcome is being written down.
        self._not_settling: set[asyncio.Task[Any] | None] = set()
        self.capacity_freed = asyncio.Event()
        self.running: dict[UUID, Running] = {}

    def start(self, dispatch: Dispatch) -> "asyncio.Task[None]":
        """Answer a ring in a task of its own, which nobody may cancel."""
        answer = asyncio.create_task(self.run(dispatch))
        self._handling.add(answer)
        self._not_settling.add(answer)
        answer.add_done_callback(self._on_done)
        return answer

    def _on_done(self, answer: "asyncio.Task[None]") -> None:
        self._handling.discard(answer)
        self._free_capacity(answer)

    def _free_capacity(self, answer: "asyncio.Task[None] | None") -> None:
        self._not_settling.discard(answer)
        self.capacity_freed.set()

    async def handle(self, dispatch: Dispatch) -> None:
        """Answer a ring. Cancelling this means that the worker shuts down: the job is handed back first."""
        work = self.start(dispatch)
        while not work.done():
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                if not work.cancelled():
                    self.release_all()

    async def run(self, dispatch: Dispatch) -> None:
        """Claim, perform, settle."""
        try:
            claim = await self.claim(dispatch)
        finally:
            acknowledged = self.queue.acknowledge(dispatch)  # on its way while we work
        if claim is None:
            self._free_capacity(asyncio.current_task())
        else:
            await self._execute(claim)
        await acknowledged

    async def _execute(self, claim: Claim) -> None:
        """Perform and settle. The slot is for the work alone: while its end is written down, the next one has it."""
        run = self._start_execution(claim)
        try:
            outcome = await self._perform_in_slot(run)
            self._free_capacity(asyncio.current_task())
            await self.settle(run.job, outcome)
        finally:
            self._end_execution(run)

    async def _perform_in_slot(self, run: Running) -> Outcome:
        """Perform a job when there is a slot for it. If none comes free, or we are closing, it is for others."""
        job, grant = run
        has_slot = await self._slots.acquire()
        try:
            if not has_slot or grant.lease.stop_reason is StopReason.SHUTDOWN:
                return Released()
            grant.lease.progressed_at = time.monotonic()
            tell = log.debug if _is_continued_lane(job) else log.info
            tell("job.started", dispatch=job.epoch)
            return await self._attempts.perform(job, grant)
        finally:
            grant.lease.over = True
            if has_slot:
                self._slots.release()

    @property
    def capacity(self) -> int:
        """How many more rings may be answered now: one for each slot, and ahead for those that will soon be free.

        As many again may be on their way to being settled; when they pile up, there is no room.
        """
        most = self._slots.number + self._slots.ahead
        return max(min(most - len(self._not_settling), 2 * most - len(self._handling)), 0)

    async def drained(self) -> None:
        """Wait until nothing is at work."""
        while self._handling:
            await asyncio.wait(self._handling)

    def release_all(self) -> None:
        """Have every job handed back as soon as its storage work can be left, and take no more."""
        self._closing = True
        for run in self.running.values():
            run.grant.stop(StopReason.SHUTDOWN)

    async def close(self) -> None:
        """Interrupt what is at work and wait until it has been handed back."""
        self.release_all()
        await self.drained()

    async def claim(self, dispatch: Dispatch) -> Claim | None:
        """Take the job, if it still waits for this very ring, and no earlier attempt of it hangs here."""
        if self._closing:
            return None
        if self._is_stalled_here(dispatch.job_id):
            log.debug("job.stalled_here", job_id=str(dispatch.job_id))
            return None
        try:
            return await self._engine.claim(dispatch)
        except DatabaseUnavailable:
            log.warning("claim.postponed", job_id=str(dispatch.job_id))  # the row still waits; housekeeping rings again
            return None

    def _is_stalled_here(self, job_id: UUID) -> bool:
        """Tell whether storage hangs here over this job: it would only take one slot after the other.

        The ring is found lost and comes again: to somebody else, or when the storage has answered.
        """
        run = self.running.get(job_id)
        return run is not None and run.grant.lease.stalled

    async def settle(self, job: ClaimedJob, outcome: Outcome) -> None:
        """Write the outcome down, however long it takes PostgreSQL to come back; twice is once.

        A worker that shuts down does not wait for that: the lease runs out, and the next attempt finds the work done.
        """
        otherwise, tries = "job.superseded", 0
        while True:
            try:
                settled = await self._engine.settle(job, outcome)
            except DatabaseUnavailable as error:
                tries += 1
                if self._closing and (is_unreachable(error) or tries > _MAX_CLOSING_TRIES):
                    log.warning("job.settle_abandoned", outcome=type(outcome).__name__)
                    return
                if is_unreachable(error):
                    otherwise = "job.settled_or_superseded"  # it may have been done, and only the answer lost
                else:
                    log.info("settlement.postponed", tries=tries)  # it was locked, or took too long
                await asyncio.sleep(_SETTLE_RETRY_SECONDS)
            else:
                tell = log.debug if settled and isinstance(outcome, Yielded) else log.info
                tell("job.settled" if settled else otherwise, outcome=type(outcome).__name__, **_error_code(outcome))
                return

    def _start_execution(self, claim: Claim) -> Running:
        """Have a job in our hands; what is said in this task from now on is about it."""
        job = claim.job
        run = Running(job, Grant(job.id, Fence(*job.fence), claim.deadline))
        if self._closing:  # it came while we were asking
            run.grant.stop(StopReason.SHUTDOWN)
        if earlier := self.running.get(job.id):  # we had lost it, and have not heard of that yet
            earlier.grant.stop(StopReason.LEASE_LOST)
        self.running[job.id] = run
        speak_of(
            job_id=job.id,
            kind=job.kind,
            attempt=job.attempt,
            parent_id=job.parent_id,
            volume_id=job.volume_id,
            snapshot_id=job.snapshot_id,
        )
        return run

    def _end_execution(self, run: Running) -> None:
        if self.running.get(run.job.id) is run:  # else we lost it, and have claimed it again
            del self.running[run.job.id]


def _is_continued_lane(job: ClaimedJob) -> bool:
    """Tell whether this is but the next slice of a lane, one of many, and worth no line of its own."""
    return job.parent_id is not None and job.epoch > 0 and job.attempt == 1


def _error_code(outcome: Outcome) -> Payload:
    return {"code": outcome.error["code"]} if isinstance(outcome, Failed | RetryIn) else {}
