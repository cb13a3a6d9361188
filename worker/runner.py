"""One job, as a sentence: claim it, perform it, settle it.

The work runs in a task of its own that nobody cancels: whoever wants its end tells its grant, and waits. So a job is
handed back only when its storage thread has really stopped.
"""

import asyncio
import time
from typing import Any, Final, NamedTuple
from uuid import UUID

import structlog

from domain.database import is_away
from domain.errors import DatabaseUnavailable
from domain.jobs.foreman import Claim, Foreman
from domain.jobs.model import Ring
from domain.jobs.orders import WorkOrder
from domain.jobs.outcomes import GaveUp, Interrupted, Outcome, Payload, RetryIn, Yielded
from domain.jobs.queue import JobQueue
from domain.logs import speak_of
from domain.storage.driver import Fence, Grant, StopReason
from worker.attempts import Attempts
from worker.slots import Slots

_SETTLE_AGAIN_SECONDS: Final = 0.5
#: How often whoever closes has tried for a row that others have locked, before it is left to its lease.
_TRIES_WHEN_CLOSING: Final = 10

log = structlog.get_logger(__name__)


class Running(NamedTuple):
    """A job in the hands of this process, at work or about to be, and the leave that it works under."""

    job: WorkOrder
    grant: Grant


class Runner:
    """Carries out jobs; knows which ones are at work here."""

    def __init__(self, foreman: Foreman, queue: JobQueue, attempts: Attempts, *, slots: int) -> None:
        """``slots``: how many jobs may be at work at once."""
        self._foreman = foreman
        self.queue = queue
        self._attempts = attempts
        self._slots = Slots(slots)
        self._closing = False
        #: Every ring that is being answered.
        self._answers: set[asyncio.Task[None]] = set()
        #: Those among them that have a slot, or may yet want one: all but those whose outcome is being written down.
        self._not_settling: set[asyncio.Task[Any] | None] = set()
        self.room_made = asyncio.Event()
        self.running: dict[UUID, Running] = {}

    def start(self, ring: Ring) -> "asyncio.Task[None]":
        """Answer a ring in a task of its own, which nobody may cancel."""
        answer = asyncio.create_task(self.run(ring))
        self._answers.add(answer)
        self._not_settling.add(answer)
        answer.add_done_callback(self._is_over)
        return answer

    def _is_over(self, answer: "asyncio.Task[None]") -> None:
        self._answers.discard(answer)
        self._make_room(answer)

    def _make_room(self, answer: "asyncio.Task[None] | None") -> None:
        self._not_settling.discard(answer)
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
        """Claim, perform, settle."""
        try:
            claim = await self.claim(ring)
        finally:
            acknowledged = self.queue.acknowledge(ring)  # on its way while we work
        if claim is None:
            self._make_room(asyncio.current_task())
        else:
            await self._carry_out(claim)
        await acknowledged

    async def _carry_out(self, claim: Claim) -> None:
        """Perform and settle. The slot is for the work alone: while its end is written down, the next one has it."""
        run = self._begin(claim)
        try:
            outcome = await self._in_a_slot(run)
            self._make_room(asyncio.current_task())
            await self.settle(run.job, outcome)
        finally:
            self._end(run)

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
            return await self._attempts.perform(job, grant)
        finally:
            grant.lease.over = True
            if has_slot:
                self._slots.give_back()

    @property
    def room(self) -> int:
        """How many more rings may be answered now: one for each slot, and ahead for those that will soon be free.

        As many again may be on their way to being settled; when they pile up, there is no room.
        """
        most = self._slots.number + self._slots.ahead
        return max(min(most - len(self._not_settling), 2 * most - len(self._answers)), 0)

    async def drained(self) -> None:
        """Wait until nothing is at work."""
        while self._answers:
            await asyncio.wait(self._answers)

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

    async def settle(self, job: WorkOrder, outcome: Outcome) -> None:
        """Write the outcome down, however long it takes PostgreSQL to come back; twice is once.

        A worker that shuts down does not wait for that: the lease runs out, and the next attempt finds the work done.
        """
        otherwise, tries = "job.superseded", 0
        while True:
            try:
                settled = await self._foreman.settle(job, outcome)
            except DatabaseUnavailable as error:
                tries += 1
                if self._closing and (is_away(error) or tries > _TRIES_WHEN_CLOSING):
                    log.warning("job.left", outcome=type(outcome).__name__)
                    return
                if is_away(error):
                    otherwise = "job.settled_or_superseded"  # it may have been done, and only the answer lost
                else:
                    log.info("settlement.postponed", tries=tries)  # it was locked, or took too long
                await asyncio.sleep(_SETTLE_AGAIN_SECONDS)
            else:
                tell = log.debug if settled and isinstance(outcome, Yielded) else log.info
                tell("job.settled" if settled else otherwise, outcome=type(outcome).__name__, **_reason(outcome))
                return

    def _begin(self, claim: Claim) -> Running:
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

    def _end(self, run: Running) -> None:
        if self.running.get(run.job.id) is run:  # else we lost it, and have claimed it again
            del self.running[run.job.id]


def _goes_on(job: WorkOrder) -> bool:
    """Tell whether this is but the next slice of a lane, one of many, and worth no line of its own."""
    return job.parent_id is not None and job.rings > 0 and job.attempt == 1


def _reason(outcome: Outcome) -> Payload:
    return {"code": outcome.error["code"]} if isinstance(outcome, GaveUp | RetryIn) else {}
