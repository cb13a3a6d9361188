"""The use cases of bulk expansion: ask for one, look at its plan and at its ledger, hand it over to lanes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import null
from sqlalchemy.ext.asyncio import AsyncSession

from domain.database import Database
from domain.errors import Invalid, JobNotFound, JobNotRetryable
from domain.expansion.ledger import Ledger, selected_volumes
from domain.expansion.model import Item
from domain.expansion.policy import BulkExpansion
from domain.expansion.states import Code, ItemStatus
from domain.jobs.acceptance import NOBODY, Origin, accepting
from domain.jobs.apart import one_by_one
from domain.jobs.batches import BatchRepository
from domain.jobs.kinds import Finished, GivenUp
from domain.jobs.model import Job, new_job
from domain.jobs.outcomes import Handed
from domain.jobs.queue import JobQueue
from domain.jobs.repository import JobRepository
from domain.storage.driver import Grant, Stopped, StopReason
from domain.volumes.repository import Ending, VolumeRepository
from domain.volumes.states import VolumeState

BULK: Final = "bulk.expand"
LANE: Final = "bulk.lane"
_MAX_LANES: Final = 8
_LANE_ATTEMPTS: Final = 3
_PREVIEW_LIMIT: Final = 1000


@dataclass(frozen=True)
class Preview:
    """What a bulk expansion would do to one volume, as far as can be said without measuring it now."""

    volume_id: UUID
    name: str
    from_size: int
    to_size: int | None
    code: Code | None
    used: int | None
    used_at: datetime | None


@dataclass(frozen=True)
class Plan:
    """What a bulk expansion would do. ``grows`` counts volumes, ``bytes`` what they would grow by."""

    total: int
    grows: int
    bytes: int
    measured_at: datetime | None
    items: list[Preview]


class ExpansionService:
    """Bulk expansions, for HTTP and for the workers."""

    def __init__(self, database: Database, queue: JobQueue, *, max_attempts: int, max_concurrent: int) -> None:
        """``max_concurrent``: the most that a request may ask for."""
        self._database = database
        self._queue = queue
        self._max_attempts = max_attempts
        self._max_concurrent = max_concurrent

    # --- asking ------------------------------------------------------------------------------------------

    async def request_expand(self, wanted: BulkExpansion, *, origin: Origin = NOBODY) -> Job:
        """Accept a bulk expansion.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self._check(wanted)
        async with accepting(self._database, origin) as acceptance:
            job = self._job(wanted.params(), created_by=origin.caller)
            acceptance.job = await JobRepository(acceptance.session).add(job)
        await self._queue.ring([job.ring])
        return job

    async def again_expand(self, session: AsyncSession, ended: Job) -> Job:
        """Ask once more for what failed, or was not begun when the job was cancelled, and for nothing else.

        A job that ended before it had a plan is asked for as a whole.
        """
        missed = {} if ended.total is None else {"missed_by": str(ended.id)}
        job = self._job(ended.params | missed, created_by=ended.created_by, retry_of=ended.id)
        return await JobRepository(session).add(job)

    async def preview(self, wanted: BulkExpansion) -> Plan:
        """Say what a bulk expansion would do, from the last measurements. Touches nothing.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self._check(wanted)
        total = grows = growth = 0
        oldest: datetime | None = None
        items: list[Preview] = []
        async with self._database.transaction() as session:
            async for volume in await session.stream_scalars(selected_volumes(wanted.selection)):
                decision = wanted.policy.decide(volume.size, volume.used)
                code, to_size = (decision, None) if isinstance(decision, Code) else (None, decision)
                total += 1
                grows += to_size is not None
                growth += 0 if to_size is None else to_size - volume.size
                oldest = min(filter(None, (oldest, volume.used_at)), default=None)
                if len(items) < _PREVIEW_LIMIT:
                    items.append(
                        Preview(volume.id, volume.name, volume.size, to_size, code, volume.used, volume.used_at)
                    )
        return Plan(total, grows, growth, oldest, items)

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

    async def plan(self, job: Job, grant: Grant) -> Handed:
        """Enter the job's volumes into the ledger, if this attempt still has the job when that is done."""
        grant.check()
        async with self._database.transaction() as session:
            ledger = Ledger(session)
            if "missed_by" in job.params:
                await ledger.plan_again(job.id, UUID(job.params["missed_by"]))
            else:
                await ledger.plan(job.id, BulkExpansion.of(job.params).selection)
            # Asked last, so that the row is locked for the moment of the commit only; a late plan is rolled back.
            if not await BatchRepository(session).hold(job):
                raise Stopped(StopReason.LEASE_LOST)
        return Handed({})

    async def hand_over(self, session: AsyncSession, planned: Finished) -> None:
        """Give planned jobs their lanes; one without any item has ended."""
        for job, _ in planned:
            if not await recount(session, job.id):
                await self._add_lanes(session, job)

    async def abandon_expand(self, session: AsyncSession, given_up: GivenUp) -> None:
        """A job that was given up before it had lanes has touched no volume."""
        for job, _ in given_up:
            await Ledger(session).forget(job.id)

    # --- lanes -------------------------------------------------------------------------------------------

    async def again_lane(self, _: AsyncSession, ended: Job) -> Job:
        """A lane is not retried; the whole job is."""
        raise JobNotRetryable("A lane is part of a bulk job; retry that.", job_id=ended.parent_id)

    async def record_lane(self, session: AsyncSession, done: Finished) -> None:
        """Nothing is left to record: every chunk was recorded when it was done."""

    async def abandon_lane(self, session: AsyncSession, given_up: GivenUp) -> None:
        """Its items are left to the lanes that `tend` gives the job."""

    async def tend(self) -> int:
        """Give jobs without a live lane new ones, or end them after too many. Returns how many there were."""
        async with self._database.transaction() as session:
            forsaken = await BatchRepository(session).forsaken(limit=20)
        tended = await one_by_one(self._database, forsaken, self._adopt, put_off=_put_off)
        for job in tended:
            await self._queue.announce(job.id)
        return len(tended)

    async def _adopt(self, session: AsyncSession, job_id: UUID) -> Job | None:
        job = await BatchRepository(session).hold_forsaken(job_id)
        if job is None:
            return None
        if not await Ledger(session).unfinished(job.id):
            await recount(session, job.id)
        elif job.attempt <= job.max_attempts:
            job.attempt += 1  # of a whole, it counts how often lanes were sent out
            job.version += 1
            lanes = await self._add_lanes(session, job, last=job.attempt > job.max_attempts)
            await self._bequeath(session, job, lanes[0])
        else:
            await self._close(session, job)
        return job

    async def _bequeath(self, session: AsyncSession, job: Job, heir: Job) -> None:
        """Leave what dead lanes had in their hands to a new one.

        Its rings start anew, so the volumes' versions are raised: its fences must be above those on the disk.
        """
        items = await Ledger(session).bequeath(job.id, heir.id)
        await VolumeRepository(session).raise_versions([item.volume_id for item in items], job.id)

    async def _close(self, session: AsyncSession, job: Job) -> None:
        """Fail what not even the last lane could bring to an end; the volumes are let go with the sizes they had."""
        claimed = await self._lose(session, job, ItemStatus.CLAIMED)
        pending = await self._lose(session, job, ItemStatus.PENDING)
        endings = [Ending(item.volume_id, job.id, None) for item in claimed]
        await VolumeRepository(session).let_go(endings, VolumeState.AVAILABLE)
        await BatchRepository(session).tally(job.id, failed=len(claimed) + len(pending))

    async def _lose(self, session: AsyncSession, job: Job, was: ItemStatus) -> Sequence[Item]:
        return await Ledger(session).close(job.id, was=was, status=ItemStatus.FAILED, code=Code.LANES_LOST)

    async def _add_lanes(self, session: AsyncSession, job: Job, *, last: bool = False) -> list[Job]:
        """Share ``max_concurrent`` out among the lanes; the sum of their slots is the whole fleet's.

        After too many have failed there is one ``last``, which only finds out what the others have left behind.
        """
        jobs = JobRepository(session)
        lanes = [
            new_job(
                LANE,
                {"slots": slots, "policy": job.params["policy"], "last": last, "fence": 0},
                max_attempts=_LANE_ATTEMPTS,
                parent_id=job.id,
                created_by=job.created_by,
                rung_at=null(),  # nobody has been told of it yet
            )
            for slots in ([1] if last else shares(job.params["max_concurrent"]))
        ]
        return [await jobs.add(lane) for lane in lanes]

    def _check(self, wanted: BulkExpansion) -> None:
        if not 1 <= wanted.max_concurrent <= self._max_concurrent:
            raise Invalid(
                f"`max_concurrent` must be between 1 and {self._max_concurrent}.",
                field="max_concurrent",
                limit=self._max_concurrent,
            )

    def _job(self, params: dict[str, Any], **columns: Any) -> Job:
        return new_job(BULK, {**params, "fence": 0}, max_attempts=self._max_attempts, **columns)


async def _put_off(session: AsyncSession, job_id: UUID) -> None:
    await BatchRepository(session).put_off(job_id)


def shares(max_concurrent: int) -> list[int]:
    """Share slots out among as many lanes as make sense, as evenly as possible."""
    lanes = min(max_concurrent, _MAX_LANES)
    each, over = divmod(max_concurrent, lanes)
    return [each + (number < over) for number in range(lanes)]


async def recount(session: AsyncSession, job_id: UUID) -> bool:
    """Count a ledger afresh; the job ends if nothing is left to do. Returns whether it did."""
    batches = BatchRepository(session)
    await batches.count(job_id, **await Ledger(session).counts(job_id))
    return await batches.tally(job_id)
