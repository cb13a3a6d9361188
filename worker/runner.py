"""One job, as a sentence: claim it, perform it, settle it.

The work runs in a task of its own that nobody cancels: whoever wants its end tells its grant, and waits. So a job is
handed back only when its storage thread has really stopped.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from uuid import UUID

import structlog

from domain.errors import CisternError, DatabaseUnavailable
from domain.jobs.foreman import Claim, Foreman
from domain.jobs.model import Ring
from domain.jobs.orders import WorkOrder
from domain.jobs.orphans import LAST_CHANCES
from domain.jobs.outcomes import Cancelled, GaveUp, Interrupted, Outcome, Payload, RetryIn, Superseded, Yielded
from domain.jobs.queue import JobQueue
from domain.jobs.retry import WORKER_LOST, RetryPolicy, describe
from domain.logs import speak_of
from domain.services import Handler
from domain.storage.driver import (
    Fence,
    FenceRefused,
    Grant,
    PermanentStorageError,
    Stopped,
    StopReason,
    StorageBusy,
    TransientStorageError,
)
from worker.slots import Slots

_SETTLE_AGAIN_SECONDS: Final = 0.5

_STOPPED: Final[dict[StopReason, Outcome]] = {
    StopReason.CANCELLED: Cancelled(),
    StopReason.SHUTDOWN: Interrupted(),
    StopReason.LEASE_LOST: Superseded(),
}

log = structlog.get_logger(__name__)


class Running(NamedTuple):
    """A job in the hands of this process, at work or about to be, and the leave that it works under."""

    job: WorkOrder
    grant: Grant


class Runner:
    """Carries out jobs; knows which ones are at work here."""

    def __init__(
        self,
        foreman: Foreman,
        queue: JobQueue,
        handlers: Mapping[str, Handler],
        retry_policy: RetryPolicy,
        *,
        slots: int,
    ) -> None:
        """``slots``: how many jobs may be at work at once."""
        self._foreman = foreman
        self.queue = queue
        self._handlers = handlers
        self._retry_policy = retry_policy
        self._slots = Slots(slots)
        self._closing = False
        self._works: set[asyncio.Task[None]] = set()
        #: Those that have a slot, or may want one.
        self._in_slots: set[asyncio.Task[Any] | None] = set()
        self.room_made = asyncio.Event()
        self.running: dict[UUID, Running] = {}

    def start(self, ring: Ring) -> "asyncio.Task[None]":
        """Answer a ring in a task of its own, which nobody may cancel."""
        work = asyncio.create_task(self.run(ring))
        self._works.add(work)
        self._in_slots.add(work)
        work.add_done_callback(self._leave)
        return work

    def _leave(self, work: "asyncio.Task[None]") -> None:
        self._works.discard(work)
        self._leave_slot(work)

    def _leave_slot(self, work: "asyncio.Task[None] | None") -> None:
        self._in_slots.discard(work)
        self.room_made.set()

    async def answer(self, ring: Ring) -> None:
        """Answer a ring. Cancelling this means that the worker shuts down: the job is handed back first."""
        work = self.start(ring)
        while not work.done():
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                if not work.cancelled():
                    self.interrupt()

    async def run(self, ring: Ring) -> None:
        """Claim, perform, settle. A slot is for the work alone: what is to be written down leaves it to the next."""
        run = None
        try:
            try:
                claim = await self.claim(ring)
            finally:
                acknowledged = self.queue.acknowledge(ring)  # on its way while we work
            if claim is not None:
                run = self._begin(claim)
                outcome = await self._in_a_slot(run)
            self._leave_slot(asyncio.current_task())
            if run is not None:
                await self.settle(run.job, outcome)
        finally:
            self._end(run)
        await acknowledged

    async def _in_a_slot(self, run: Running) -> Outcome:
        """Perform a job when there is a slot for it. If none comes free, or we are closing, it is for others."""
        job, grant = run
        has_slot = await self._slots.take()
        try:
            if not has_slot or grant.lease.stop_reason is StopReason.SHUTDOWN:
                return Interrupted()
            grant.lease.progressed_at = time.monotonic()
            tell = log.debug if _goes_on(job) else log.info
            tell("job.started", ring=job.rings)
            return await self.perform(job, grant)
        finally:
            grant.lease.over = True
            if has_slot:
                self._slots.give_back()

    @property
    def room(self) -> int:
        """How many more jobs may be started here: for the slots, and ahead for those that will soon be free.

        None as long as twice as many have yet to be settled.
        """
        most = self._slots.number + self._slots.ahead
        return max(min(most - len(self._in_slots), 2 * most - len(self._works)), 0)

    async def drained(self) -> None:
        """Wait until nothing is at work."""
        while self._works:
            await asyncio.wait(self._works)

    def interrupt(self) -> None:
        """Have every job handed back as soon as its storage work can be left, and take no more."""
        self._closing = True
        for run in self.running.values():
            run.grant.stop(StopReason.SHUTDOWN)

    async def close(self) -> None:
        """Interrupt what is at work and wait until it has been handed back."""
        self.interrupt()
        await self.drained()

    async def claim(self, ring: Ring) -> Claim | None:
        """Take the job, if it still waits for this very ring, and no earlier attempt of it hangs here."""
        if self._closing:
            return None
        if self._hangs(ring.job_id):
            log.debug("job.left_to_others", job_id=str(ring.job_id))
            return None
        try:
            return await self._foreman.claim(ring)
        except DatabaseUnavailable:
            log.warning("claim.postponed", job_id=str(ring.job_id))  # the row still waits; housekeeping rings again
            return None

    def _hangs(self, job_id: UUID) -> bool:
        """Tell whether storage hangs here over this job: it would only take one slot after the other.

        The ring is found lost and comes again: to somebody else, or when the storage has answered.
        """
        run = self.running.get(job_id)
        return run is not None and run.grant.lease.stalled

    async def perform(self, job: WorkOrder, grant: Grant) -> Outcome:
        """Do the work, and find out what is to be found out if it comes to nothing."""
        outcome = await self._attempt(job, grant)
        if isinstance(outcome, GaveUp | Cancelled):
            return await self._seal(job, grant, outcome)
        return outcome

    async def settle(self, job: WorkOrder, outcome: Outcome) -> None:
        """Write the outcome down, however long it takes PostgreSQL to come back; twice is once.

        A worker that shuts down does not wait: the lease runs out, and the next attempt finds the work done.
        """
        while True:
            try:
                settled = await self._foreman.settle(job, outcome)
            except DatabaseUnavailable:
                if self._closing:
                    log.warning("job.left", outcome=type(outcome).__name__)
                    return
                await asyncio.sleep(_SETTLE_AGAIN_SECONDS)
            else:
                tell = log.debug if settled and isinstance(outcome, Yielded) else log.info
                tell("job.settled" if settled else "job.superseded", outcome=type(outcome).__name__, **_reason(outcome))
                return

    async def _attempt(self, job: WorkOrder, grant: Grant) -> Outcome:
        if job.cancel_requested_at is not None:
            return Cancelled()
        if job.attempt > job.max_attempts:  # its last one died with its worker; all that is left is to end it
            return GaveUp(job.error or WORKER_LOST)
        try:
            return await self._handlers[job.kind].do(job, grant)
        except CisternError as error:
            return self._judge(job, error)
        except Exception:
            log.exception("job.crashed")
            return self._judge(job, CisternError())

    def _judge(self, job: WorkOrder, error: CisternError) -> Outcome:
        """Turn a failure into a decision."""
        match error:
            case Stopped(reason=reason):
                return _STOPPED[reason]
            case FenceRefused():
                return Superseded()
            case StorageBusy():
                return self._retry_policy.wait(error)
            case PermanentStorageError():
                return GaveUp(describe(error))
            case _:
                return self._retry_policy.decide(error, attempt=job.attempt, max_attempts=job.max_attempts)

    async def _seal(self, job: WorkOrder, grant: Grant, outcome: GaveUp | Cancelled) -> Outcome:
        """Shut earlier attempts out and see what is on the storage, before the volume is let go."""
        try:
            found: Payload | None = await self._handlers[job.kind].seal(job, grant)
        except StorageBusy as error:
            return self._retry_policy.wait(error)
        except FenceRefused:
            return Superseded()
        except TransientStorageError as error:
            # Until earlier attempts are shut out the volume should not be let go; but not for ever.
            if job.attempt < job.max_attempts + LAST_CHANCES:
                return RetryIn(self._retry_policy.delay(job.attempt), describe(error))
            found = None
        except CisternError as error:  # of the storage, or a backend that is configured no more
            log.warning("storage.unknown", error=error.message)
            found = None
        return Cancelled(found) if isinstance(outcome, Cancelled) else GaveUp(outcome.error, found)

    def _begin(self, claim: Claim) -> Running:
        """Have a job in our hands; what is said in this task from now on is about it."""
        job = claim.job
        run = Running(job, Grant(job.id, Fence(*job.fence), claim.deadline))
        if self._closing:  # it came while we were asking
            run.grant.stop(StopReason.SHUTDOWN)
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

    def _end(self, run: Running | None) -> None:
        if run is not None and self.running.get(run.job.id) is run:  # else we lost it, and have claimed it again
            del self.running[run.job.id]


def _goes_on(job: WorkOrder) -> bool:
    """Tell whether this is but the next slice of a lane, one of many, and worth no line of its own."""
    return job.parent_id is not None and job.rings > 0 and job.attempt == 1


def _reason(outcome: Outcome) -> Payload:
    return {"code": outcome.error["code"]} if isinstance(outcome, GaveUp | RetryIn) else {}
