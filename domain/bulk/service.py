"""What all bulk jobs have in common: they are planned, handed over to lanes, looked after, and have a ledger."""

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import null
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.kinds import LANE
from domain.bulk.ledger import ItemRef, Ledger
from domain.bulk.model import Item
from domain.bulk.operation import BulkOperation
from domain.bulk.selection import Selection, shares
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


class BulkService:
    """Bulk jobs of any kind, for HTTP and for the workers."""

    def __init__(self, database: Database, queue: JobQueue, operations: Mapping[str, BulkOperation]) -> None:
        """``operations`` by the kind of the whole."""
        self._database = database
        self._queue = queue
        self._operations = operations

    async def items(self, job_id: UUID, status: ItemStatus | None, *, after: UUID | None, limit: int) -> Sequence[Item]:
        """Read ``limit`` entries of a job's ledger and one more, by volume id.

        Raises:
            JobNotFound: there is no such job.
        """
        async with self._database.transaction() as session:
            if await JobRepository(session).get(job_id) is None:
                raise JobNotFound(job_id)
            return await Ledger(session).page(job_id, status, after=after, limit=limit)

    # --- planning and handing over -----------------------------------------------------------------------

    async def plan(self, job: ClaimedJob, grant: Grant) -> Delegated:
        """Enter the job's volumes into the ledger, if this attempt still has the job when that is done."""
        grant.check()
        async with self._database.transaction() as session:
            ledger = Ledger(session)
            if "missed_by" in job.params:
                await ledger.plan_again(job.id, UUID(job.params["missed_by"]))
            else:
                await ledger.plan(job.id, Selection.from_json(job.params["selection"]))
            # Asked last, so that the row is locked for the moment of the commit only; a late plan is rolled back.
            if not await ParentRepository(session).lock_held(job.id, epoch=job.epoch, worker_id=job.worker_id):
                raise Stopped(StopReason.LEASE_LOST)
        return Delegated({})

    async def hand_over(self, session: AsyncSession, planned: SucceededJobs) -> None:
        """Give planned jobs their lanes; one without any item has ended."""
        for job, _ in planned:
            if not await recount(session, job.id):
                await self._add_lanes(session, job)

    async def abandon(self, session: AsyncSession, given_up: FailedJobs) -> None:
        """A job that was given up before it had lanes has touched no volume."""
        for job, _ in given_up:
            await Ledger(session).delete(job.id)

    # --- lanes -------------------------------------------------------------------------------------------

    async def retry_lane(self, _: AsyncSession, ended: Job) -> Job:
        """A lane is not retried; the whole job is."""
        raise JobNotRetryable("A lane is part of a bulk job; retry that.", job_id=ended.parent_id)

    async def record_lane(self, session: AsyncSession, done: SucceededJobs) -> None:
        """Nothing is left to record: every chunk was recorded when it was done."""

    async def abandon_lane(self, session: AsyncSession, given_up: FailedJobs) -> None:
        """Its items are left to the lanes that `tend` gives the job."""

    async def assign_lanes(self) -> int:
        """Give jobs without a live lane new ones, or end them after too many. Returns how many there were."""
        async with self._database.transaction() as session:
            forsaken = await ParentRepository(session).without_lanes(limit=20)
        tended = await each_in_own_transaction(self._database, forsaken, self._assign_lanes, on_error=_defer)
        for job in tended:
            await self._queue.announce(job.id)
        return len(tended)

    async def _assign_lanes(self, session: AsyncSession, job_id: UUID) -> Job | None:
        job = await ParentRepository(session).lock_without_lanes(job_id)
        if job is None:
            return None
        if not await Ledger(session).unfinished(job.id):
            await recount(session, job.id)
        elif job.attempt <= job.max_attempts:
            job.attempt += 1  # of a whole, it counts how often lanes were sent out
            job.version += 1
            lanes = await self._add_lanes(session, ClaimedJob.from_row(job), last=job.attempt > job.max_attempts)
            await self._reassign_items(session, job, lanes[0])
        else:
            await self._give_up(session, job)
        return job

    async def _reassign_items(self, session: AsyncSession, job: Job, new_lane: Job) -> None:
        """Leave what dead lanes had in their hands to a new one.

        Its rings start anew, so versions are raised: its fences must be above those on the disk.
        """
        items = await Ledger(session).reassign(job.id, new_lane.id)
        await self._operations[job.kind].raise_fences(session, job.id, items)

    async def _give_up(self, session: AsyncSession, job: Job) -> None:
        """Fail what not even the last lane could bring to an end, and let it go."""
        claimed = await self._fail_items(session, job, ItemStatus.CLAIMED)
        pending = await self._fail_items(session, job, ItemStatus.PENDING)
        await self._operations[job.kind].give_up(session, job.id, claimed)
        await ParentRepository(session).add_counts(job.id, failed=len(claimed) + len(pending))

    async def _fail_items(self, session: AsyncSession, job: Job, was: ItemStatus) -> Sequence[ItemRef]:
        return await Ledger(session).close(job.id, was=was, status=ItemStatus.FAILED, code=ItemCode.LANES_LOST)

    async def _add_lanes(self, session: AsyncSession, job: ClaimedJob, *, last: bool = False) -> list[Job]:
        """Share ``max_concurrent`` out among the lanes; the sum of their slots is the whole fleet's.

        After too many have failed there is one ``last``, which only finds out what the others have left behind.
        """
        jobs, terms = JobRepository(session), self._operations[job.kind].lane_params(job.params)
        slots_of_lanes = [1] if last else shares(job.params["max_concurrent"])
        lanes = [
            new_job(
                LANE,
                {"of": job.kind, "slots": slots, "lanes": len(slots_of_lanes), "last": last, "fence": 0, **terms},
                max_attempts=_LANE_ATTEMPTS,
                parent_id=job.id,
                created_by=job.created_by,
                dispatched_at=null(),  # nobody has been told of it yet
            )
            for slots in slots_of_lanes
        ]
        return [await jobs.add(lane) for lane in lanes]


async def _defer(session: AsyncSession, job_id: UUID) -> None:
    await ParentRepository(session).defer(job_id)


async def recount(session: AsyncSession, job_id: UUID) -> bool:
    """Count a ledger afresh; the job ends if nothing is left to do. Returns whether it did."""
    parents = ParentRepository(session)
    await parents.set_counts(job_id, **await Ledger(session).counts(job_id))
    return await parents.add_counts(job_id)
