"""The steps by which a lane processes one chunk of ledger items; `worker.lanes` calls them in this order.

    1. claim      mark due items as claimed by this lane                  `LaneItems`
    2. measure    read the usage of their volumes from the backends       `BulkOperation.measure`, only if it decides
    3. acquire    lock the volumes, decide what becomes of each item,     `_decide_chunk`
                  acquire those to work on, write all decisions down
    4. perform    do the storage work on one volume                       `item_work`
    5. record     store the results, release the volumes, count           `BulkOperation.record`

Each step except measure and perform is one short transaction. It first locks the lane's own row and checks that this
attempt still holds the lane; a step that comes too late changes nothing and raises `Stopped`. If nothing is measured,
steps 1 and 3 are one transaction (`claim_next`): the items are then only locked, and written once instead of twice.

Decisions are made on three levels, each of which only knows its own:

    `_decide_chunk`                   every item: by `decide_by_state`, else by the operation
    `BulkOperation.decide_available`  items whose volumes are available, for one kind of bulk job
    `GrowthPolicy.new_size`           one volume's size, as arithmetic
"""

import enum
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk import item_work
from domain.bulk.lane_items import LaneItems
from domain.bulk.ledger import CLOSE_BATCH, ItemRef, ItemUpdate, Lane, Ledger
from domain.bulk.operation import BulkOperation, ItemWork, Result, decide_by_state
from domain.bulk.states import FINISHED, ItemCode, ItemStatus
from domain.db.database import Database
from domain.jobs.store.parents import ParentRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.storage.context import Grant, Stopped, StopReason
from domain.volumes.model import LockedVolume
from domain.volumes.repository import VolumeRepository

log = structlog.get_logger(__name__)


class ClaimedChunk(NamedTuple):
    """A chunk claimed by a lane: the number of its items, and the work on those that were not finished at once."""

    item_count: int
    work: Sequence[ItemWork] = ()


class CountChange(enum.Enum):
    """How finished items changed the counters of the parent job."""

    UNCHANGED = enum.auto()
    CHANGED = enum.auto()
    COMPLETED = enum.auto()


class Chunks:
    """Opens the chunks of lanes, for all kinds of bulk jobs."""

    def __init__(
        self, database: Database, queue: JobQueue, operations: Mapping[str, BulkOperation], *, busy_seconds: float
    ) -> None:
        """Create the steps.

        Args:
            database: where ledger, volumes and jobs are.
            queue: announces changes of the parent job.
            operations: by the kind of the parent job.
            busy_seconds: how long a busy volume is retried before its item is skipped.
        """
        self._database = database
        self._queue = queue
        self._operations = operations
        self._busy_seconds = busy_seconds

    def of(self, lane: Lane) -> "LaneChunks":
        """Return the chunks of one attempt at a lane."""
        operation = self._operations[lane.params["of"]]
        return LaneChunks(self._database, self._queue, operation, lane, busy_seconds=self._busy_seconds)


class LaneChunks:
    """The steps of one attempt at a lane."""

    def __init__(
        self, database: Database, queue: JobQueue, operation: BulkOperation, lane: Lane, *, busy_seconds: float
    ) -> None:
        self._database = database
        self._queue = queue
        self._operation = operation
        self._lane = lane
        self._busy_seconds = busy_seconds

    # --- claim and acquire -------------------------------------------------------------------------------

    async def resume(self) -> ClaimedChunk:
        """Claim and acquire again what earlier attempts at this lane left unfinished."""
        return await self._measured_chunk(await self.reclaim_items())

    async def claim_next(self, limit: int) -> ClaimedChunk:
        """Claim up to ``limit`` due items and acquire their volumes; in one transaction if nothing is measured."""
        if self._operation.measures(self._lane.params):
            return await self._measured_chunk(await self.claim_items(limit))
        async with self._holding_lane() as session:
            items = await LaneItems(session, self._lane).lock_due(limit)
            work, change = await self._acquire(session, items, {}) if items else ([], CountChange.UNCHANGED)
        await self._announce(change)
        return ClaimedChunk(len(items), work)

    async def _measured_chunk(self, items: Sequence[ItemRef]) -> ClaimedChunk:
        work = await self.acquire_volumes(items, await self.measure(items)) if items else []
        return ClaimedChunk(len(items), work)

    async def reclaim_items(self) -> Sequence[ItemRef]:
        """Claim the items that earlier attempts at this lane had claimed, without touching their volumes."""
        async with self._holding_lane() as session:
            return await LaneItems(session, self._lane).reclaim()

    async def claim_items(self, limit: int) -> Sequence[ItemRef]:
        """Claim up to ``limit`` due items, without touching their volumes."""
        async with self._holding_lane() as session:
            return await LaneItems(session, self._lane).claim_due(limit)

    async def measure(self, items: Sequence[ItemRef]) -> dict[UUID, int]:
        """Return the allocated bytes of the items' volumes, if decisions depend on them, and as far as measurable."""
        operation = self._operation
        return await operation.measure(items) if operation.measures(self._lane.params) else {}

    async def acquire_volumes(self, items: Sequence[ItemRef], used: Mapping[UUID, int]) -> list[ItemWork]:
        """Decide about claimed items, and acquire the volumes to work on; return that work. ``used`` is in bytes."""
        async with self._holding_lane() as session:
            work, change = await self._acquire(session, items, used)
        await self._announce(change)
        return work

    async def _acquire(
        self, session: AsyncSession, items: Sequence[ItemRef], used: Mapping[UUID, int]
    ) -> tuple[list[ItemWork], CountChange]:
        """Decide about items and acquire volumes, for items that are all claimed, or all only locked (pending).

        The volumes' rows stay locked from the decision until the commit, so that a decision is never out of date.
        """
        operation, volumes, lane_items = self._operation, VolumeRepository(session), LaneItems(session, self._lane)
        locked = {volume.id: volume for volume in await volumes.lock_many([item.volume_id for item in items])}
        pairs = [(item, locked.get(item.volume_id)) for item in items]
        updates = await _decide_chunk(session, operation, self._lane, pairs, used)
        to_work_on = [(update, locked[update.volume_id]) for update in _with_status(updates, ItemStatus.CLAIMED)]
        to_acquire = [volume for _, volume in to_work_on if volume.job_id != self._lane.parent_id]
        versions = await volumes.acquire_many(to_acquire, operation.state, self._lane.parent_id)
        work = await operation.prepare(session, self._lane, to_work_on, versions)
        finished = [update for update in updates if update.status in FINISHED]
        previous = items[0].status if items else ItemStatus.CLAIMED
        await lane_items.write([*finished, *(one.update for one in work)], previous=previous)
        busy = [update.volume_id for update in _with_status(updates, ItemStatus.PENDING)]
        gave_up_waiting = await lane_items.postpone(busy, previous=previous, busy_seconds=self._busy_seconds)
        return work, await self._count(session, finished, gave_up_waiting)

    # --- read --------------------------------------------------------------------------------------------

    async def next_due(self) -> float | None:
        """Return the seconds until the next pending item is due; None if no item is pending."""
        async with self._database.transaction() as session:
            return await Ledger(session).next_due(self._lane.parent_id)

    async def holds_any(self) -> bool:
        """Return whether the lane still has claimed items."""
        async with self._database.transaction() as session:
            return await Ledger(session).has_claimed(self._lane)

    async def is_cancelled(self) -> bool:
        """Return whether cancellation of the parent job was requested."""
        async with self._database.transaction() as session:
            return await ParentRepository(session).is_cancelled(self._lane.parent_id)

    # --- perform -----------------------------------------------------------------------------------------

    async def perform(self, work: ItemWork, grant: Grant) -> Result | None:
        """Do the storage work on one volume.

        Return None if the volume must stay with the lane: the attempt is being stopped, or another process holds the
        storage lock and may still publish. The lane's next slice tries again.
        """
        return await item_work.perform(self._operation, work, grant)

    async def fail(self, work: ItemWork, grant: Grant) -> Result | None:
        """Fail the item of one volume: seal it and report what other lanes left, without doing the work."""
        return await item_work.fail(self._operation, work, grant)

    def skip(self, work: ItemWork) -> Result:
        """Skip the item of one volume on which no attempt has started, because the job was cancelled."""
        return item_work.skip(work)

    # --- record ------------------------------------------------------------------------------------------

    async def record(self, results: Sequence[Result]) -> None:
        """Store the results of items that the lane still holds: volumes, items and counters, in one transaction."""
        operation = self._operation
        sizes = {result.update.volume_id: result.size for result in results}
        async with self._holding_lane() as session:
            written = await LaneItems(session, self._lane).finish([result.update for result in results])
            await operation.record(session, self._lane, written, sizes)
            change = await self._count(session, written)
        await self._announce(change)
        if log.is_enabled_for(logging.DEBUG):  # checked once, not for each of a million volumes
            _log_successes(operation, written, sizes)

    async def cancel_rest(self) -> None:
        """Skip all pending items, since the job was cancelled."""
        await self._close_rest(ItemStatus.SKIPPED, ItemCode.CANCELLED)

    async def fail_rest(self) -> None:
        """Fail all pending items, since every lane failed."""
        await self._close_rest(ItemStatus.FAILED, ItemCode.LANES_LOST)

    async def _close_rest(self, status: ItemStatus, code: ItemCode) -> None:
        closed = CLOSE_BATCH
        while closed == CLOSE_BATCH:
            async with self._holding_lane() as session:
                items = await Ledger(session).close(
                    self._lane.parent_id, previous=ItemStatus.PENDING, status=status, code=code
                )
                closed = len(items)
                change = await self._count(session, items)
            await self._announce(change)

    # --- shared by the steps -----------------------------------------------------------------------------

    @asynccontextmanager
    async def _holding_lane(self) -> AsyncIterator[AsyncSession]:
        """Open a transaction that holds the lane's row locked.

        Raises:
            Stopped: this attempt no longer holds the lane.
        """
        async with self._database.transaction() as session:
            lane, parents = self._lane, ParentRepository(session)
            if not await parents.lock_held(lane.job_id, epoch=lane.epoch, worker_id=lane.worker_id):
                raise Stopped(StopReason.LEASE_LOST)
            yield session

    async def _count(
        self, session: AsyncSession, finished: Sequence[ItemUpdate | ItemRef], gave_up_waiting: int = 0
    ) -> CountChange:
        """Add finished items to the parent's counters; the last item ends the parent."""
        if not finished and not gave_up_waiting:
            return CountChange.UNCHANGED  # the parent's row is contended: update it only when a counter changes
        counts = Counter([item.status for item in finished])
        has_ended = await ParentRepository(session).add_counts(
            self._lane.parent_id,
            succeeded=counts[ItemStatus.SUCCEEDED],
            failed=counts[ItemStatus.FAILED],
            skipped=counts[ItemStatus.SKIPPED] + gave_up_waiting,
        )
        return CountChange.COMPLETED if has_ended else CountChange.CHANGED

    async def _announce(self, change: CountChange) -> None:
        """Announce a change of the parent job, after the commit."""
        if change is CountChange.UNCHANGED:
            return
        await self._queue.announce(self._lane.parent_id)
        if change is CountChange.COMPLETED:
            log.info("bulk.ended", job_id=str(self._lane.parent_id))


async def _decide_chunk(
    session: AsyncSession,
    operation: BulkOperation,
    lane: Lane,
    pairs: Sequence[tuple[ItemRef, LockedVolume | None]],
    used: Mapping[UUID, int],
) -> list[ItemUpdate]:
    """Decide about every item of a chunk: by its volume's state if that settles it, else by the operation."""
    by_state = [update for item, volume in pairs if (update := decide_by_state(item, volume, lane)) is not None]
    decided = {update.volume_id for update in by_state}
    available = [(item, volume) for item, volume in pairs if volume is not None and volume.id not in decided]
    return by_state + await operation.decide_available(session, lane, available, used)


def _log_successes(operation: BulkOperation, updates: Sequence[ItemUpdate], sizes: Mapping[UUID, int | None]) -> None:
    event = f"volume.{operation.success_code}"
    for update in _with_status(updates, ItemStatus.SUCCEEDED):
        log.debug(event, volume_id=str(update.volume_id), size=sizes[update.volume_id])


def _with_status(updates: Sequence[ItemUpdate], status: ItemStatus) -> list[ItemUpdate]:
    return [update for update in updates if update.status is status]
