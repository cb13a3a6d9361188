"""The maintenance of all jobs: rescue those of dead workers, dispatch those that are due, replace lost messages.

Any worker may do it, and there is no leader: every task is a conditional update with SKIP LOCKED, and is safe to run
concurrently.
"""

import time
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncSession

from domain import metrics
from domain.db.database import Database
from domain.jobs.attempt import ClaimedJob
from domain.jobs.isolation import each_in_own_transaction
from domain.jobs.kinds import JobHandlers
from domain.jobs.model import Job, JobMessage
from domain.jobs.states import JobStatus
from domain.jobs.stats import CounterBuffer, CounterName
from domain.jobs.store.dispatch import DispatchRepository
from domain.jobs.store.orphans import OrphanRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.jobs.webhooks.outbox import record_ended_jobs

#: Maximum number of jobs handled in one transaction.
_PAGE_SIZE: Final = 500
#: Maximum number of pages per run, as the other tasks wait meanwhile.
_MAX_PAGES: Final = 20
#: Time in seconds after which no further page of due jobs is dispatched: Redis may not answer.
_DISPATCH_SECONDS: Final = 5.0


class JobMaintenance:
    """The maintenance that one worker does."""

    def __init__(
        self,
        database: Database,
        queue: JobQueue,
        handlers: JobHandlers,
        counters: CounterBuffer,
        *,
        lease: float,
        rescue_is_safe: ColumnElement[bool],
    ) -> None:
        """Prepare the maintenance of the jobs that have a handler; ``lease`` in seconds."""
        self._database = database
        self._queue = queue
        self._handlers = handlers
        self._counters = counters
        self._rescue_is_safe = rescue_is_safe
        #: The kinds of the jobs that this worker can claim.
        self.kinds = tuple(handlers)
        self._lease = lease
        #: Age in seconds from which a message is checked: Redis may have lost it.
        self.redispatch_after = lease / 3

    async def rescue(self) -> int:
        """Requeue the jobs of dead workers, or fail those whose attempts are exhausted. Returns their number."""
        async with self._database.transaction() as session:
            orphans = OrphanRepository(session)
            rescued = await orphans.rescue(_PAGE_SIZE, safe=self._rescue_is_safe)
            exhausted = await orphans.exhausted(_PAGE_SIZE, kinds=self.kinds, safe=self._rescue_is_safe)
            await orphans.delete_silent_workers()
        failed = await each_in_own_transaction(self._database, exhausted, self._fail_orphan, on_error=_defer)
        self._counters.add(CounterName.RESCUED, len(rescued) + len(failed))
        for job in failed:
            metrics.current().jobs_finished(job.kind, JobStatus.FAILED)
            await self._queue.announce(job.id)
        return len(rescued) + len(failed)

    async def _fail_orphan(self, session: AsyncSession, job_id: UUID) -> Job | None:
        job = await OrphanRepository(session).fail(job_id)
        if job is not None:
            await self._handlers[job.kind].abandon(session, [(ClaimedJob.from_row(job), None)])
            await record_ended_jobs(session, [job.id])
        return job

    async def dispatch_due(self, *, max_pages: int = _MAX_PAGES) -> int:
        """Dispatch the jobs that are due. Returns their number.

        They are read in the order in which they became due, of whichever project, and take turns only when they are
        sent. So many of one project must not keep those of others from being read.
        """
        dispatched, until = 0, time.monotonic() + _DISPATCH_SECONDS
        for _ in range(max_pages):
            async with self._database.transaction() as session:
                due = await DispatchRepository(session, self.kinds).mark_due(_PAGE_SIZE)
            await self._queue.dispatch(due)
            dispatched += len(due)
            if len(due) < _PAGE_SIZE or time.monotonic() > until:
                break
        return dispatched

    async def explain_waiting(self) -> int:
        """Say in queued jobs that no live process serves their backend or node. Returns their number."""
        async with self._database.transaction() as session:
            waiting = await DispatchRepository(session, self.kinds).explain_waiting(_PAGE_SIZE, lease=self._lease)
        await self._queue.announce(*waiting)
        return len(waiting)

    async def redispatch_lost(self) -> int:
        """Send again the messages that Redis has lost. Returns how many were sent, some twice if Redis was too slow.

        Raises:
            QueueUnavailable: Redis does not answer, so lost messages cannot be determined.
        """
        count = 0
        for _ in range(_MAX_PAGES):
            async with self._database.transaction() as session:
                dispatches = DispatchRepository(session, self.kinds)
                waiting = await dispatches.mark_dispatched_before(self.redispatch_after, _PAGE_SIZE)
            lost = await self._lost(waiting)
            await self._queue.dispatch(lost)
            count += len(lost)
            self._counters.add(CounterName.LOST_MESSAGES, len(lost))
            if len(lost) < _PAGE_SIZE:
                break
            # Every message of a full page was lost, so Redis has probably lost all: check the next page at once.
        return count

    async def _lost(self, waiting: Sequence[JobMessage]) -> Sequence[JobMessage]:
        """Return the messages that are not in Redis although their jobs are queued.

        The rows are read once more: a worker may have claimed a job since, and then acknowledged its message.
        """
        missing = await self._queue.missing(waiting) if waiting else []
        if not missing:
            return []
        async with self._database.transaction() as session:
            return await DispatchRepository(session, self.kinds).still_queued(missing)


async def _defer(session: AsyncSession, job_id: UUID) -> None:
    await OrphanRepository(session).defer(job_id)
