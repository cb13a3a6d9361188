"""Bulk jobs of every kind: requests, the ledger, and lanes; `BulkHandler` plans the ledger."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import null
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.expand.policy import BulkExpandRequest
from domain.bulk.expand.preview import Plan, preview
from domain.bulk.ledger import ItemRef, Ledger
from domain.bulk.model import Item
from domain.bulk.operation import BulkOperation
from domain.bulk.requests import BulkRequest
from domain.bulk.selection import require_within, retry_params, slots_per_lane
from domain.bulk.states import ItemCode, ItemStatus
from domain.db.database import Database
from domain.errors import JobNotFound
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin, accepting
from domain.jobs.claimed import ClaimedJob
from domain.jobs.isolation import each_in_own_transaction
from domain.jobs.kinds import JobKind
from domain.jobs.model import Job, new_job, retry_columns
from domain.jobs.store.jobs import JobRepository
from domain.jobs.store.parents import ParentRepository
from domain.jobs.transport.job_queue import JobQueue

_LANE_ATTEMPTS: Final = 3
#: Maximum number of jobs that `BulkService.assign_lanes` handles in one run.
_MAX_ASSIGNED: Final = 20


class BulkService:
    """Bulk jobs of any kind, for the API, schedules and workers."""

    def __init__(
        self,
        database: Database,
        queue: JobQueue,
        operations: Mapping[str, BulkOperation],
        *,
        max_attempts: int,
        max_concurrent: int,
    ) -> None:
        """Create the service.

        Args:
            database: Where the jobs and their ledgers are.
            queue: Transports the messages.
            operations: By the kind of the bulk job.
            max_attempts: Of each job; a lane has fewer.
            max_concurrent: The maximum that a request may have.
        """
        self._database = database
        self._queue = queue
        self._operations = operations
        self._max_attempts = max_attempts
        self._max_concurrent = max_concurrent

    async def items(self, job_id: UUID, status: ItemStatus | None, *, after: UUID | None, limit: int) -> Sequence[Item]:
        """Read up to ``limit`` + 1 items of a job's ledger, by volume id.

        Raises:
            JobNotFound: no such job.
        """
        async with self._database.transaction() as session:
            if await JobRepository(session).get(job_id) is None:
                raise JobNotFound(job_id)
            return await Ledger(session).page(job_id, status, after=after, limit=limit)

    # --- request -----------------------------------------------------------------------------------------

    async def request(self, request: BulkRequest, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a bulk job.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds, or a member is for schedules only.
        """
        request.require_unscheduled()
        self.check(request)
        async with accepting(self._database, origin) as accepted:
            job = accepted.job = await self.add(accepted.session, request, created_by=origin.caller)
        await self._queue.dispatch([job.message])
        return job

    async def add(self, session: AsyncSession, request: BulkRequest, **columns: Any) -> Job:
        """Insert the job in the caller's transaction; a schedule passes ``schedule_id`` and ``scheduled_for``.

        The caller dispatches it after the commit.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(request)
        time = columns.get("scheduled_for") or datetime.now(UTC)
        params = request.job_params(time=time, schedule_id=columns.get("schedule_id"))
        return await self._add(session, request.kind, params, **columns)

    async def add_retry(self, session: AsyncSession, ended: Job) -> Job:
        """Insert a job for the items of an ended one that failed or were not started."""
        params = self._operations[ended.kind].request_type.retry_params(retry_params(ended), time=datetime.now(UTC))
        return await self._add(session, ended.kind, params, **retry_columns(ended))

    def check(self, request: BulkRequest) -> None:
        """Check a request against the configured limit.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        require_within(request.max_concurrent, self._max_concurrent)

    async def preview(self, request: BulkExpandRequest) -> Plan:
        """Return what a bulk expansion would do, by the last measured usage. Changes nothing.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(request)
        return await preview(self._database, request)

    async def _add(self, session: AsyncSession, kind: str, params: dict[str, Any], **columns: Any) -> Job:
        job = new_job(kind, {**params, "fence_version": 0}, max_attempts=self._max_attempts, **columns)
        return await JobRepository(session).add(job)

    # --- lanes -------------------------------------------------------------------------------------------

    async def assign_lanes(self) -> int:
        """Add lanes to jobs that have no live lane left, or fail those that had too many. Return the number of jobs."""
        async with self._database.transaction() as session:
            without_lanes = await ParentRepository(session).without_lanes(limit=_MAX_ASSIGNED)
        handled = await each_in_own_transaction(self._database, without_lanes, self._assign_lanes, on_error=_defer)
        for job in handled:
            await self._queue.announce(job.id)
        return len(handled)

    async def _assign_lanes(self, session: AsyncSession, job_id: UUID) -> Job | None:
        job = await ParentRepository(session).lock_without_lanes(job_id)
        if job is None:
            return None
        if not await Ledger(session).has_unfinished(job.id):
            await recount(session, job.id)
        elif job.attempt <= job.max_attempts:
            job.attempt += 1  # of a parent, this counts how often it was given lanes
            job.version += 1
            lanes = await self.add_lanes(session, ClaimedJob.from_row(job), last=job.attempt > job.max_attempts)
            await self._reassign_items(session, job, lanes[0])
        else:
            await self._give_up(session, job)
        return job

    async def _reassign_items(self, session: AsyncSession, job: Job, new_lane: Job) -> None:
        """Reassign the items claimed by dead lanes to a new one.

        The epoch of the new lane starts at 0 again. Versions are incremented, so that its fences are nevertheless above
        those that the dead lanes left on the backend.
        """
        items = await Ledger(session).reassign(job.id, new_lane.id)
        await self._operations[job.kind].raise_fences(session, job.id, items)

    async def _give_up(self, session: AsyncSession, job: Job) -> None:
        """Fail the items that the last lane could not finish either, and release their volumes."""
        claimed = await self._fail_items(session, job, ItemStatus.CLAIMED)
        pending = await self._fail_items(session, job, ItemStatus.PENDING)
        await self._operations[job.kind].give_up(session, job.id, claimed)
        await ParentRepository(session).add_counts(job.id, failed=len(claimed) + len(pending))

    async def _fail_items(self, session: AsyncSession, job: Job, previous: ItemStatus) -> Sequence[ItemRef]:
        failed, code = ItemStatus.FAILED, ItemCode.LANES_LOST
        return await Ledger(session).close(job.id, previous=previous, status=failed, code=code)

    async def add_lanes(self, session: AsyncSession, job: ClaimedJob, *, last: bool = False) -> list[Job]:
        """Add undispatched lanes; their slots add up to ``max_concurrent`` over all workers.

        After too many lanes have failed, add a single ``last`` one, which only seals and fails what the others left.
        """
        jobs, lane_params = JobRepository(session), self._operations[job.kind].lane_params(job.params)
        slot_counts = [1] if last else slots_per_lane(job.params["max_concurrent"])
        lanes = [
            new_job(
                JobKind.BULK_LANE,
                {
                    "of": job.kind,
                    "slots": slots,
                    "lanes": len(slot_counts),
                    "last": last,
                    "fence_version": 0,
                    **lane_params,
                },
                max_attempts=_LANE_ATTEMPTS,
                parent_id=job.id,
                created_by=job.created_by,
                dispatched_at=null(),  # undispatched: `dispatch_due` sends the message after the commit
            )
            for slots in slot_counts
        ]
        return [await jobs.add(lane) for lane in lanes]


async def _defer(session: AsyncSession, job_id: UUID) -> None:
    await ParentRepository(session).defer(job_id)


async def recount(session: AsyncSession, job_id: UUID) -> bool:
    """Set a job's counters from its ledger, which ends the job if all items are finished. Return whether it ended."""
    parents = ParentRepository(session)
    await parents.set_counts(job_id, **await Ledger(session).counts(job_id))
    return await parents.add_counts(job_id)
