"""What a lane does with a chunk of items: claim it, take its volumes, do the work, record it.

Each step but the work is one short transaction that first makes sure, on the lane's own row, that this attempt
still has the lane. A step that comes too late changes nothing and raises `Stopped`.
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

from domain.bulk import item_work as effort
from domain.bulk.kinds import EXPAND
from domain.bulk.lane_items import LaneItems
from domain.bulk.ledger import CLOSE_BATCH, ItemRef, ItemUpdate, Lane, Ledger
from domain.bulk.operation import BulkOperation, ItemWork, Result, decide_by_state
from domain.bulk.states import FINISHED, ItemCode, ItemStatus
from domain.db.database import Database
from domain.jobs.store.parents import ParentRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.storage.context import Grant, Stopped, StopReason
from domain.volumes.repository import LockedVolume, VolumeRepository

log = structlog.get_logger(__name__)


class ClaimedChunk(NamedTuple):
    """A chunk in the lane's hands: the number of items, and the tasks of those on which there is work to do."""

    items: int
    tasks: Sequence[ItemWork] = ()


class CountChange(enum.Enum):
    """What finished items have come to in the counters of the whole."""

    NOTHING = enum.auto()
    SOME = enum.auto()
    LAST = enum.auto()


class Chunks:
    """The steps of a lane."""

    def __init__(
        self, database: Database, queue: JobQueue, operations: Mapping[str, BulkOperation], *, busy_seconds: float
    ) -> None:
        """``operations`` by the kind of the whole; ``patience``: for how many seconds busy volumes are tried again."""
        self._database = database
        self._queue = queue
        self._operations = operations
        self._busy_seconds = busy_seconds

    # --- claim and take ----------------------------------------------------------------------------------

    async def resume(self, lane: Lane) -> ClaimedChunk:
        """Take again what an earlier attempt of this lane has left behind."""
        return await self._acquired_chunk(lane, await self.claim_leftovers(lane))

    async def claim_next(self, lane: Lane, limit: int) -> ClaimedChunk:
        """Claim up to ``limit`` items that wait, and take their volumes; at once, if nothing must be measured first."""
        if self._operation(lane).measures(lane.params):
            return await self._acquired_chunk(lane, await self.claim(lane, limit))
        async with self._holding_lane(lane) as session:
            items = await LaneItems(session, lane).lock(limit)
            tasks, counted = await self._acquire(session, lane, items, {}) if items else ([], CountChange.NOTHING)
        await self._announce(lane, counted)
        return ClaimedChunk(len(items), tasks)

    async def _acquired_chunk(self, lane: Lane, items: Sequence[ItemRef]) -> ClaimedChunk:
        return ClaimedChunk(
            len(items), await self.acquire(lane, items, await self.measure(lane, items)) if items else []
        )

    async def claim_leftovers(self, lane: Lane) -> Sequence[ItemRef]:
        """Claim again what an earlier attempt of this lane has left behind."""
        async with self._holding_lane(lane) as session:
            return await LaneItems(session, lane).claim_leftovers()

    async def claim(self, lane: Lane, limit: int) -> Sequence[ItemRef]:
        """Claim up to ``limit`` items that wait."""
        async with self._holding_lane(lane) as session:
            return await LaneItems(session, lane).claim(limit)

    async def measure(self, lane: Lane, items: Sequence[ItemRef]) -> dict[UUID, int]:
        """Measure what is to be known about these volumes; what cannot be measured is left out."""
        operation = self._operation(lane)
        return await operation.measure(items) if operation.measures(lane.params) else {}

    async def acquire(self, lane: Lane, items: Sequence[ItemRef], used: Mapping[UUID, int]) -> list[ItemWork]:
        """Take the volumes that are to be worked on, and write down what is to be done, under their locks."""
        async with self._holding_lane(lane) as session:
            tasks, counted = await self._acquire(session, lane, items, used)
        await self._announce(lane, counted)
        return tasks

    async def _acquire(
        self, session: AsyncSession, lane: Lane, items: Sequence[ItemRef], used: Mapping[UUID, int]
    ) -> tuple[list[ItemWork], CountChange]:
        """As `take` does, for items that are all claimed, or all only locked; and count those that are finished."""
        operation, volumes, claims = self._operation(lane), VolumeRepository(session), LaneItems(session, lane)
        locked = {volume.id: volume for volume in await volumes.lock_many([item.volume_id for item in items])}
        found = [(item, locked.get(item.volume_id)) for item in items]
        entries = await _decide_all(session, operation, lane, found, used)
        taken = [(entry, locked[entry.volume_id]) for entry in _with_status(entries, ItemStatus.CLAIMED)]
        newly_taken = [volume for _, volume in taken if volume.job_id != lane.job_id]
        versions = await volumes.acquire_many(newly_taken, operation.state, lane.job_id)
        tasks = await operation.begin(session, lane, taken, versions)
        finished = [entry for entry in entries if entry.status in FINISHED]
        was = items[0].status if items else ItemStatus.CLAIMED
        await claims.write([*finished, *(task.entry for task in tasks)], was=was)
        busy = [entry.volume_id for entry in _with_status(entries, ItemStatus.PENDING)]
        gave_up_waiting = await claims.postpone(busy, was=was, patience=self._busy_seconds)
        return tasks, await self._count_finished(session, lane, finished, gave_up_waiting)

    # --- look --------------------------------------------------------------------------------------------

    async def next_due(self, lane: Lane) -> float | None:
        """In how many seconds there is something to claim again; None when nothing waits any more."""
        async with self._database.transaction() as session:
            return await Ledger(session).next_due(lane.job_id)

    async def holds_any(self, lane: Lane) -> bool:
        """Tell whether the lane still has volumes in its hands."""
        async with self._database.transaction() as session:
            return await Ledger(session).has_claimed(lane)

    async def is_cancelled(self, lane: Lane) -> bool:
        """Tell whether the end of the whole job was asked for."""
        async with self._database.transaction() as session:
            return await ParentRepository(session).is_cancelled(lane.job_id)

    # --- work --------------------------------------------------------------------------------------------

    async def perform(self, lane: Lane, task: ItemWork, grant: Grant) -> Result | None:
        """Do the work on one volume.

        None: it is left as it is, in the lane's hands, because the attempt is to end, or because somebody holds the
        lock and may still publish. The lane's next slice tries again.
        """
        return await effort.perform(self._operation(lane), task, grant)

    async def fail(self, lane: Lane, task: ItemWork, grant: Grant) -> Result | None:
        """Find out what other lanes have left of a volume, without trying again."""
        return await effort.fail(self._operation(lane), task, grant)

    def skip(self, task: ItemWork) -> Result:
        """Let a volume be on which nobody has begun to work, because the job was cancelled."""
        return effort.skip(task)

    # --- record ------------------------------------------------------------------------------------------

    async def record(self, lane: Lane, results: Sequence[Result]) -> None:
        """Record what became of a chunk: volumes, items and counters, at once, as far as the lane still has them."""
        operation = self._operation(lane)
        sizes = {result.entry.volume_id: result.size for result in results}
        async with self._holding_lane(lane) as session:
            written = await LaneItems(session, lane).finish([result.entry for result in results])
            await operation.record(session, lane, written, sizes)
            counted = await self._count_finished(session, lane, written)
        await self._announce(lane, counted)
        if log.is_enabled_for(logging.DEBUG):  # asked once, and not for each of a million volumes
            _log_successes(operation, written, sizes)

    async def cancel_rest(self, lane: Lane) -> None:
        """Skip everything that still waits, since the job was cancelled."""
        await self._close_rest(lane, ItemStatus.SKIPPED, ItemCode.CANCELLED)

    async def fail_rest(self, lane: Lane) -> None:
        """Fail everything that still waits, since no lane has come through."""
        await self._close_rest(lane, ItemStatus.FAILED, ItemCode.LANES_LOST)

    async def _close_rest(self, lane: Lane, status: ItemStatus, code: ItemCode) -> None:
        closed = CLOSE_BATCH
        while closed == CLOSE_BATCH:
            async with self._holding_lane(lane) as session:
                items = await Ledger(session).close(lane.job_id, was=ItemStatus.PENDING, status=status, code=code)
                closed = len(items)
                counted = await self._count_finished(session, lane, items)
            await self._announce(lane, counted)

    # --- what the steps share ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _holding_lane(self, lane: Lane) -> AsyncIterator[AsyncSession]:
        async with self._database.transaction() as session:
            if not await ParentRepository(session).lock_held(lane.lane_id, epoch=lane.epoch, worker_id=lane.worker_id):
                raise Stopped(StopReason.LEASE_LOST)
            yield session

    async def _count_finished(
        self, session: AsyncSession, lane: Lane, finished: Sequence[ItemUpdate | ItemRef], gave_up_waiting: int = 0
    ) -> CountChange:
        """Count what is finished, and so end the whole with its last item."""
        if not finished and not gave_up_waiting:
            return CountChange.NOTHING  # the row of the whole is everybody's: nobody touches it for nothing
        counts = Counter([item.status for item in finished])
        has_ended = await ParentRepository(session).add_counts(
            lane.job_id,
            succeeded=counts[ItemStatus.SUCCEEDED],
            failed=counts[ItemStatus.FAILED],
            skipped=counts[ItemStatus.SKIPPED] + gave_up_waiting,
        )
        return CountChange.LAST if has_ended else CountChange.SOME

    async def _announce(self, lane: Lane, counted: CountChange) -> None:
        """Say that the whole has changed, if it has."""
        if counted is CountChange.NOTHING:
            return
        await self._queue.announce(lane.job_id)
        if counted is CountChange.LAST:
            log.info("bulk.ended", job_id=str(lane.job_id))

    def _operation(self, lane: Lane) -> BulkOperation:
        """What this lane's job is for; one from before there were others does not say so."""
        return self._operations[lane.params.get("of", EXPAND)]


async def _decide_all(
    session: AsyncSession,
    operation: BulkOperation,
    lane: Lane,
    found: Sequence[tuple[ItemRef, LockedVolume | None]],
    used: Mapping[UUID, int],
) -> list[ItemUpdate]:
    """Decide about each volume: by its state, or else as the operation does."""
    by_state = [entry for item, volume in found if (entry := decide_by_state(item, volume, lane)) is not None]
    decided = {entry.volume_id for entry in by_state}
    available = [(item, volume) for item, volume in found if volume is not None and volume.id not in decided]
    return by_state + await operation.decide(session, lane, available, used)


def _log_successes(operation: BulkOperation, entries: Sequence[ItemUpdate], sizes: Mapping[UUID, int | None]) -> None:
    event = f"volume.{operation.success_code}"
    for entry in _with_status(entries, ItemStatus.SUCCEEDED):
        log.debug(event, volume_id=str(entry.volume_id), size=sizes[entry.volume_id])


def _with_status(entries: Sequence[ItemUpdate], status: ItemStatus) -> list[ItemUpdate]:
    return [entry for entry in entries if entry.status is status]
