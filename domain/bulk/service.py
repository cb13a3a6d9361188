"""The life cycle of bulk jobs of every kind: planning, delegation to lanes, recovery of lost lanes, and the ledger."""

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import null
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.kinds import LANE
from domain.bulk.ledger import ItemRef, Ledger
from domain.bulk.model import Item
from domain.bulk.operation import BulkOperation
from domain.bulk.selection import Selection, slots_per_lane
from domain.bulk.states import ItemCode, ItemStatus
from domain.db.database import Database
from domain.errors import JobNotFound, JobNotRetryable
from domain.jobs.claimed import ClaimedJob
from domain.jobs.isolation import each_in_own_transaction
from domain.jobs.kinds import FailedJobs, SucceededJobs
from domain.jobs.model import Job, new_job
from domain.jobs.outcomes import Delegated
from domain.jobs.store.jobs import JobRepository
from domain.jobs.store.parents import ParentRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.storage.context import Grant, Stopped, StopReason

_LANE_ATTEMPTS: Final = 3
#: Maximum number of jobs that `BulkService.assign_lanes` handles in one run.
_MAX_ASSIGNED: Final = 20


class BulkService:
    """Bulk jobs of any kind, for the API and the workers."""

    def __init__(self, database: Database, queue: JobQueue, operations: Mapping[str, BulkOperation]) -> None:
        """Create the service; ``operations`` by the kind of the parent job."""
        self._database = database
        self._queue = queue
        self._operations = operations

    async def items(self, job_id: UUID, status: ItemStatus | None, *, after: UUID | None, limit: int) -> Sequence[Item]:
        """Read up to ``limit`` + 1 items of a job's ledger, by volume id.

        Raises:
            JobNotFound: no such job.
        """
        async with self._database.transaction() as session:
            if await JobRepository(session).get(job_id) is None:
                raise JobNotFound(job_id)
            return await Ledger(session).page(job_id, status, after=after, limit=limit)

    # --- plan and delegate -------------------------------------------------------------------------------

    async def plan(self, job: ClaimedJob, grant: Grant) -> Delegated:
        """Insert the job's volumes into the ledger.

        Raises:
            Stopped: this attempt lost the job meanwhile; the plan is rolled back.
        """
        grant.check()
        async with self._database.transaction() as session:
            ledger = Ledger(session)
            if "missed_by" in job.params:
                await ledger.plan_retry(job.id, UUID(job.params["missed_by"]))
            else:
                await ledger.plan(job.id, Selection.from_json(job.params["selection"]))
            # Checked last, so that the job's row is locked only for the moment of the commit.
            if not await ParentRepository(session).lock_held(job.id, epoch=job.epoch, worker_id=job.worker_id):
                raise Stopped(StopReason.LEASE_LOST)
        return Delegated({})

    async def delegate(self, session: AsyncSession, planned: SucceededJobs) -> None:
        """Add lanes to planned jobs, or end those that have no items."""
        for job, _ in planned:
            if not await recount(session, job.id):
                await self._add_lanes(session, job)

    async def abandon(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Delete the plans of jobs that failed before they got lanes; no volume has been acquired yet."""
        for job, _ in failed:
            await Ledger(session).delete_plan(job.id)

    # --- lanes -------------------------------------------------------------------------------------------

    async def retry_lane(self, _: AsyncSession, ended: Job) -> Job:
        """Refuse to retry a lane.

        Raises:
            JobNotRetryable: always, naming the parent job, which can be retried.
        """
        raise JobNotRetryable("A lane is a child of a bulk job; retry the bulk job.", job_id=ended.parent_id)

    async def record_lane(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Do nothing: every chunk was recorded when its work ended."""

    async def abandon_lane(self, session: AsyncSession, failed: FailedJobs) -> None:
        """Do nothing: `assign_lanes` reassigns the items of failed lanes."""

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
            lanes = await self._add_lanes(session, ClaimedJob.from_row(job), last=job.attempt > job.max_attempts)
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

    async def _add_lanes(self, session: AsyncSession, job: ClaimedJob, *, last: bool = False) -> list[Job]:
        """Add undispatched lanes; their slots add up to ``max_concurrent`` over all workers.

        After too many lanes have failed, add a single ``last`` one, which only seals and fails what the others left.
        """
        jobs, lane_params = JobRepository(session), self._operations[job.kind].lane_params(job.params)
        slot_counts = [1] if last else slots_per_lane(job.params["max_concurrent"])
        lanes = [
            new_job(
                LANE,
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
