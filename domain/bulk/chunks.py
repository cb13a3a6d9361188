"""The steps by which a lane processes one chunk of ledger items; `worker.lanes` calls them in this order.

    1. claim      mark due items as claimed by this lane                  `LaneItems`
    2. measure    read the usage of their volumes from the backends       `BulkOperation.measure`, only if it decides
    3. acquire    lock the volumes, decide what becomes of each item,     `_decide_chunk`
                  acquire those to work on, write all decisions down
    4. perform    do the storage work on one volume                       `BulkOperation.work_on`
    5. record     store the results, release the volumes, count           `BulkOperation.record`

Each step except measure and perform is one short transaction. It locks the lane's own row first, or right after the
project's, and checks that this attempt still holds the lane; a step that comes too late changes nothing and raises
`Stopped`. If nothing is measured,
steps 1 and 3 are one transaction (`claim_next`): the items are then only locked, and written once instead of twice.

Decisions are made on three levels, each of which only knows its own:

    `_decide_chunk`                   every item: by `_decide_by_state`, else by the operation
    `BulkOperation.decide_available`  items whose volumes are available, for one kind of bulk job
    `GrowthPolicy.new_size`           one volume's size, as arithmetic
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from domain import metrics
from domain.bulk.ledger import CLOSE_BATCH, LaneItems, Ledger
from domain.bulk.model import FINISHED, ItemCode, ItemRef, ItemStatus, ItemUpdate, Lane
from domain.bulk.operation import BulkOperation, ItemWork, Result
from domain.db.database import Database
from domain.errors import CisternError, QuotaExceeded
from domain.jobs.states import JobStatus
from domain.jobs.store.parents import ParentRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.operations import BUSY, VolumeState
from domain.projects.quota import UNLIMITED, Room, lock_rooms
from domain.storage.context import Stopped, StopReason
from domain.volumes.filesystems.repository import record_growths
from domain.volumes.model import VolumeRow
from domain.volumes.repository import VolumeRepository

#: Delay until a lane retries volumes whose storage hangs.
_HUNG_RETRY_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


class ClaimedChunk(NamedTuple):
    """A chunk claimed by a lane: the number of its items, and the work on those that were not finished at once."""

    item_count: int
    work: Sequence[ItemWork] = ()


class _Step:
    """One transaction of a lane: its session, the room in the project, the lane's items, and what it has counted."""

    def __init__(self, session: AsyncSession, lane: Lane, room: Room) -> None:
        self.session = session
        self.room = room
        self.items = LaneItems(session, lane)
        self.has_counted = False
        #: The status of the parent, if the step has ended it.
        self.ended: JobStatus | None = None
        #: Finished items by status and code, for the metrics.
        self.finished: Counter[tuple[str, str]] = Counter()
        self._parent_id = lane.parent_id

    async def count(
        self, finished: Sequence[ItemUpdate | ItemRef], gave_up_waiting: int = 0, *, code: str = ""
    ) -> None:
        """Add finished items to the parent's counters; the last item ends the parent. ``code`` if they have none."""
        if not finished and not gave_up_waiting:
            return  # the parent's row is contended: update it only when a counter changes
        counts = Counter([item.status for item in finished])
        self.has_counted = True
        if metrics.current().is_on:
            self.finished.update((item.status, getattr(item, "code", None) or code) for item in finished)
            self.finished[ItemStatus.SKIPPED, ItemCode.VOLUME_BUSY] += gave_up_waiting
        self.ended = await ParentRepository(self.session).add_counts(
            self._parent_id,
            succeeded=counts[ItemStatus.SUCCEEDED],
            failed=counts[ItemStatus.FAILED],
            skipped=counts[ItemStatus.SKIPPED] + gave_up_waiting,
        )


@dataclass(frozen=True)
class LaneSteps:
    """The steps of one attempt at a lane."""

    lane: Lane
    operation: BulkOperation
    database: Database
    #: Announces changes of the parent job.
    queue: JobQueue
    #: How long a busy volume is retried before its item is skipped.
    busy_seconds: float

    # --- claim and acquire -------------------------------------------------------------------------------

    async def resume(self) -> ClaimedChunk:
        """Claim and acquire again what earlier attempts at this lane left unfinished."""
        return await self._measure_and_acquire(await self.reclaim_items())

    async def claim_next(self, limit: int) -> ClaimedChunk:
        """Claim up to ``limit`` due items and acquire their volumes; in one transaction if nothing is measured."""
        if self.operation.measures(self.lane.params):
            return await self._measure_and_acquire(await self.claim_items(limit))
        async with self._step(adds=True) as step:
            items = await step.items.lock_due(limit)
            work = await self._acquire(step, items, {}) if items else []
        return ClaimedChunk(len(items), work)

    async def _measure_and_acquire(self, items: Sequence[ItemRef]) -> ClaimedChunk:
        if not items:
            return ClaimedChunk(0)
        used: Mapping[UUID, int | None] = {}
        if self.operation.measures(self.lane.params):
            used = await self.operation.measure(items, self.lane.project_id)
        return ClaimedChunk(len(items), await self.acquire_volumes(items, used))

    async def reclaim_items(self) -> Sequence[ItemRef]:
        """Claim the items that earlier attempts at this lane had claimed, without touching their volumes."""
        async with self._step() as step:
            return await step.items.reclaim()

    async def claim_items(self, limit: int) -> Sequence[ItemRef]:
        """Claim up to ``limit`` due items, without touching their volumes."""
        async with self._step() as step:
            return await step.items.claim_due(limit)

    async def acquire_volumes(self, items: Sequence[ItemRef], used: Mapping[UUID, int | None]) -> list[ItemWork]:
        """Decide about claimed items, and acquire the volumes to work on; return that work. ``used`` is in bytes."""
        async with self._step(adds=True) as step:
            return await self._acquire(step, items, used)

    async def _acquire(self, step: _Step, items: Sequence[ItemRef], used: Mapping[UUID, int | None]) -> list[ItemWork]:
        """Decide about items and acquire volumes, for items that are all claimed, or all only locked (pending).

        The volumes' rows stay locked from the decision until the commit, so that a decision is never out of date.
        """
        operation, lane, volumes = self.operation, self.lane, VolumeRepository(step.session)
        found = await volumes.lock_many([item.volume_id for item in items])
        # An id in a request may be that of a volume of another project: there is no such volume here.
        locked = {volume.id: volume for volume in found if volume.project_id == lane.project_id}
        used = {volume_id: value for volume_id, value in used.items() if volume_id in locked}
        pairs = [(item, locked.get(item.volume_id)) for item in items]
        updates = await _decide_chunk(step, operation, lane, pairs, used)
        to_work_on = [(update, locked[update.volume_id]) for update in _with_status(updates, ItemStatus.CLAIMED)]
        to_acquire = [volume for _, volume in to_work_on if volume.job_id != lane.parent_id]
        sizes = {update.volume_id: update.to_size for update, _ in to_work_on}
        versions = await volumes.acquire_many(to_acquire, operation.state, lane.parent_id, sizes)
        work = await operation.prepare(step.session, lane, to_work_on, versions)
        finished = [update for update in updates if update.status in FINISHED]
        previous = items[0].status if items else ItemStatus.CLAIMED
        await step.items.write([*finished, *(one.update for one in work)], previous=previous)
        busy = [update.volume_id for update in _with_status(updates, ItemStatus.PENDING)]
        gave_up_waiting = await step.items.postpone(busy, previous=previous, busy_seconds=self.busy_seconds)
        await step.count(finished, gave_up_waiting)
        return work

    # --- read --------------------------------------------------------------------------------------------

    async def next_due(self) -> float | None:
        """Return the seconds until the lane has work again; None if it has no items left.

        An item that is still claimed by the lane is due soon: its storage hangs.
        """
        async with self.database.transaction() as session:
            ledger = Ledger(session)
            delay = await ledger.next_due(self.lane)
            if await ledger.has_claimed(self.lane):
                return min(_HUNG_RETRY_SECONDS, _HUNG_RETRY_SECONDS if delay is None else delay)
            return delay

    async def is_cancelled(self) -> bool:
        """Return whether cancellation of the parent job was requested."""
        async with self.database.transaction() as session:
            return await ParentRepository(session).is_cancelled(self.lane.parent_id)

    # --- record ------------------------------------------------------------------------------------------

    async def record(self, results: Sequence[Result]) -> None:
        """Store the results of items that the lane still holds: volumes, items and counters, in one transaction.

        Items whose fence was refused stay claimed, and get a higher one: as this attempt holds the lane, no later one
        exists. The lane's next slice tries them again.

        If they cannot be recorded together, each is recorded alone; one that cannot even then fails.
        """
        try:
            await self._record(results)
        except CisternError:  # PostgreSQL cannot be used now, or this attempt no longer holds the lane
            raise
        except Exception:
            log.exception("lane.record_failed", volumes=len(results))
            for result in results:
                await self._record_alone(result)

    async def _record_alone(self, result: Result) -> None:
        try:
            await self._record([result])
        except CisternError:
            raise
        except Exception:
            log.exception("volume.record_failed", volume_id=str(result.update.volume_id))
            error = CisternError()
            failed = result.update._replace(status=ItemStatus.FAILED, code=error.code, detail=error.message)
            await self._record([Result(failed)])

    async def _record(self, results: Sequence[Result]) -> None:
        by_volume = {result.update.volume_id: result for result in results}
        refused = [(result.update, result.stored) for result in results if result.stored is not None]
        async with self._step() as step:
            written = await step.items.finish([result.update for result in results if result.stored is None])
            await self.operation.record(step.session, self.lane, written, by_volume)
            released = [by_volume[update.volume_id] for update in written]
            growths = {one.update.volume_id: one.growth for one in released if one.growth is not None}
            await record_growths(step.session, growths)
            await step.count(written)
            if refused:
                items, above = [update for update, _ in refused], max(stored.version for _, stored in refused)
                await self.operation.raise_fences(step.session, self.lane.parent_id, items, above=above)
        if refused:
            log.warning("fence.raised", volumes=len(refused), above=above)
        if log.is_enabled_for(logging.DEBUG):  # checked once, not for each of a million volumes
            event = f"volume.{self.operation.success_code}"
            for update in _with_status(written, ItemStatus.SUCCEEDED):
                log.debug(event, volume_id=str(update.volume_id), size=by_volume[update.volume_id].size)

    async def close_pending(self, ending: Mapping[str, str], *, backend: str | None = None) -> None:
        """Finish all pending items of the parent job, or of one backend, without any work, as `Ledger.close`."""
        closed = CLOSE_BATCH
        while closed == CLOSE_BATCH:
            async with self._step() as step:
                items = await Ledger(step.session).close(
                    self.lane.parent_id, ItemStatus.PENDING, ending, backend=backend
                )
                await step.count(items, code=ending["code"])
            closed = len(items)

    # --- shared by the steps -----------------------------------------------------------------------------

    @asynccontextmanager
    async def _step(self, *, adds: bool = False) -> AsyncIterator[_Step]:
        """Open a transaction that holds the lane's row locked; announce a change of the parent job after the commit.

        If the step ``adds`` to a project with limits, the project is locked before everything else.

        Raises:
            Stopped: this attempt no longer holds the lane.
        """
        lane, room = self.lane, UNLIMITED
        async with self.database.transaction() as session:
            if adds and lane.is_limited:
                room = (await lock_rooms(session, [lane.project_id]))[lane.project_id]
            if not await ParentRepository(session).lock_held(lane.job_id, epoch=lane.epoch, worker_id=lane.worker_id):
                raise Stopped(StopReason.LEASE_LOST)
            step = _Step(session, lane, room)
            yield step
        if step.has_counted:
            await self.queue.announce(lane.parent_id)
        metrics.current().items_finished(step.finished)
        if step.ended is not None:
            metrics.current().jobs_finished(self.lane.params["of"], step.ended)
            log.info("bulk.ended", job_id=str(lane.parent_id))


async def _decide_chunk(
    step: _Step,
    operation: BulkOperation,
    lane: Lane,
    pairs: Sequence[tuple[ItemRef, VolumeRow | None]],
    used: Mapping[UUID, int | None],
) -> list[ItemUpdate]:
    """Decide about every item of a chunk: by its volume's state if that settles it, else by the operation and room."""
    by_state = [update for item, volume in pairs if (update := _decide_by_state(item, volume, lane)) is not None]
    decided = {update.volume_id for update in by_state}
    available = [(item, volume) for item, volume in pairs if volume is not None and volume.id not in decided]
    decisions = await operation.decide_available(step.session, lane, available, used)
    return by_state + [_within(step.room, operation, update) for update in decisions]


def _within(room: Room, operation: BulkOperation, update: ItemUpdate) -> ItemUpdate:
    """Take what the item adds to its project from the room; if there is not enough, the item fails."""
    try:
        if update.status is ItemStatus.CLAIMED:
            room.take(**operation.needed(update))
    except QuotaExceeded as error:
        return update._replace(status=ItemStatus.FAILED, code=error.code, detail=error.message, to_size=None)
    return update


def _decide_by_state(item: ItemRef, volume: VolumeRow | None, lane: Lane) -> ItemUpdate | None:
    """Decide about an item by the state of its volume, whose row is locked; None if the volume is available.

    CLAIMED: the parent job holds the volume already. PENDING: the volume is busy with another job.
    """
    if volume is None:
        return ItemUpdate(item.volume_id, ItemStatus.SKIPPED, ItemCode.VOLUME_GONE)
    if volume.job_id == lane.parent_id:  # acquired by an earlier attempt, whose decision in the ledger is binding
        return ItemUpdate(item.volume_id, ItemStatus.CLAIMED, to_size=item.to_size, snapshot_id=item.snapshot_id)
    if volume.state in BUSY:
        return ItemUpdate(item.volume_id, ItemStatus.PENDING)
    if volume.state is VolumeState.ERROR:
        return ItemUpdate(item.volume_id, ItemStatus.SKIPPED, ItemCode.VOLUME_UNUSABLE, from_size=volume.size)
    return None


def _with_status(updates: Sequence[ItemUpdate], status: ItemStatus) -> list[ItemUpdate]:
    return [update for update in updates if update.status is status]
