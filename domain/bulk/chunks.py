"""What a lane does with a chunk of items: claim it, take its volumes, do the work, record it.

Each step but the work is one short transaction that first makes sure, on the lane's own row, that this attempt
still has the lane. A step that comes too late changes nothing and raises `Stopped`.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk import effort
from domain.bulk.claims import Claims
from domain.bulk.kinds import EXPAND
from domain.bulk.ledger import CLOSED_AT_ONCE, Entry, Lane, Ledger, Line
from domain.bulk.operation import Operation, Result, Task, standing
from domain.bulk.states import FINISHED, Code, ItemStatus
from domain.database import Database
from domain.jobs.batches import BatchRepository
from domain.jobs.orders import WorkOrder
from domain.jobs.queue import JobQueue
from domain.storage.driver import Grant, Stopped, StopReason
from domain.volumes.repository import Held, VolumeRepository

log = structlog.get_logger(__name__)


class Taken(NamedTuple):
    """A chunk in the lane's hands: so many items, and what is to be done with those that stay as they are not."""

    items: int
    tasks: Sequence[Task] = ()


class Chunks:
    """The steps of a lane."""

    def __init__(
        self, database: Database, queue: JobQueue, operations: Mapping[str, Operation], *, patience: float
    ) -> None:
        """``operations`` by the kind of the whole; ``patience``: for how many seconds busy volumes are tried again."""
        self._database = database
        self._queue = queue
        self._operations = operations
        self._patience = patience

    # --- claim and take ----------------------------------------------------------------------------------

    async def take_over(self, job: WorkOrder) -> Taken:
        """Take again what an earlier attempt of this lane has left behind."""
        return await self._taken(job, await self.inherit(job))

    async def take_more(self, job: WorkOrder, limit: int) -> Taken:
        """Claim up to ``limit`` items that wait, and take their volumes; at once, if nothing must be measured first."""
        if self._operation(job).measures(job.params):
            return await self._taken(job, await self.claim(job, limit))
        async with self._held(job) as (session, lane):
            items = await Claims(session, lane).lock(limit)
            tasks, counted = await self._take(session, lane, items, {}) if items else ([], None)
        await self._announce(lane, counted)
        return Taken(len(items), tasks)

    async def _taken(self, job: WorkOrder, items: Sequence[Line]) -> Taken:
        return Taken(len(items), await self.take(job, items, await self.measure(job, items)) if items else [])

    async def inherit(self, job: WorkOrder) -> Sequence[Line]:
        """Claim again what an earlier attempt of this lane has left behind."""
        async with self._held(job) as (session, lane):
            return await Claims(session, lane).inherit()

    async def claim(self, job: WorkOrder, limit: int) -> Sequence[Line]:
        """Claim up to ``limit`` items that wait."""
        async with self._held(job) as (session, lane):
            return await Claims(session, lane).claim(limit)

    async def measure(self, job: WorkOrder, items: Sequence[Line]) -> dict[UUID, int]:
        """Measure what is to be known about these volumes; what cannot be measured is left out."""
        operation = self._operation(job)
        return await operation.measure(items) if operation.measures(job.params) else {}

    async def take(self, job: WorkOrder, items: Sequence[Line], used: Mapping[UUID, int]) -> list[Task]:
        """Take the volumes that are to be worked on, and write down what is to be done, under their locks."""
        async with self._held(job) as (session, lane):
            tasks, counted = await self._take(session, lane, items, used)
        await self._announce(lane, counted)
        return tasks

    async def _take(
        self, session: AsyncSession, lane: Lane, items: Sequence[Line], used: Mapping[UUID, int]
    ) -> tuple[list[Task], bool | None]:
        """As `take` does; also returns what `_tally` does. The items are all claimed, or all only locked."""
        operation, volumes, claims = self._operation(lane), VolumeRepository(session), Claims(session, lane)
        locked = {volume.id: volume for volume in await volumes.lock_many([item.volume_id for item in items])}
        found = [(item, locked.get(item.volume_id)) for item in items]
        entries = await _decide(session, operation, lane, found, used)
        taken = [(entry, locked[entry.volume_id]) for entry in _those(entries, ItemStatus.CLAIMED)]
        fresh = [volume for _, volume in taken if volume.job_id != lane.job_id]
        versions = await volumes.take_many(fresh, operation.state, lane.job_id)
        tasks = await operation.begin(session, lane, taken, versions)
        finished = [entry for entry in entries if entry.status in FINISHED]
        was = items[0].status if items else ItemStatus.CLAIMED
        await claims.write([*finished, *(task.entry for task in tasks)], was=was)
        busy = [entry.volume_id for entry in _those(entries, ItemStatus.PENDING)]
        tired = await claims.postpone(busy, was=was, patience=self._patience)
        return tasks, await self._tally(session, lane, finished, tired)

    # --- look --------------------------------------------------------------------------------------------

    async def next_due(self, job: WorkOrder) -> float | None:
        """In how many seconds there is something to claim again; None when nothing waits any more."""
        async with self._database.transaction() as session:
            return await Ledger(session).next_due(_lane(job).job_id)

    async def holds_any(self, job: WorkOrder) -> bool:
        """Tell whether the lane still has volumes in its hands."""
        async with self._database.transaction() as session:
            return await Ledger(session).holds(_lane(job))

    async def is_cancelled(self, job: WorkOrder) -> bool:
        """Tell whether the end of the whole job was asked for."""
        async with self._database.transaction() as session:
            return await BatchRepository(session).is_cancelled(_lane(job).job_id)

    # --- work --------------------------------------------------------------------------------------------

    async def do(self, job: WorkOrder, task: Task, grant: Grant) -> Result | None:
        """Do the work on one volume.

        None: it is left as it is, in the lane's hands, because the attempt is to end, or because somebody holds the
        lock and may still publish. The lane's next slice tries again.
        """
        return await effort.done(self._operation(job), task, grant)

    async def give_up(self, job: WorkOrder, task: Task, grant: Grant) -> Result | None:
        """Find out what other lanes have left of a volume, without trying again."""
        return await effort.given_up(self._operation(job), task, grant)

    def leave(self, task: Task) -> Result:
        """Let a volume be on which nobody has begun to work, because the job was cancelled."""
        return effort.left(task)

    # --- record ------------------------------------------------------------------------------------------

    async def record(self, job: WorkOrder, results: Sequence[Result]) -> None:
        """Record what became of a chunk: volumes, items and counters, at once, as far as the lane still has them."""
        operation = self._operation(job)
        sizes = {result.entry.volume_id: result.size for result in results}
        async with self._held(job) as (session, lane):
            written = await Claims(session, lane).finish([result.entry for result in results])
            await operation.record(session, lane, written, sizes)
            counted = await self._tally(session, lane, written)
        await self._announce(lane, counted)
        if log.is_enabled_for(logging.DEBUG):  # asked once, and not for each of a million volumes
            _tell(operation, written, sizes)

    async def cancel_rest(self, job: WorkOrder) -> None:
        """Skip everything that still waits, since the job was cancelled."""
        await self._close_rest(job, ItemStatus.SKIPPED, Code.CANCELLED)

    async def fail_rest(self, job: WorkOrder) -> None:
        """Fail everything that still waits, since no lane has come through."""
        await self._close_rest(job, ItemStatus.FAILED, Code.LANES_LOST)

    async def _close_rest(self, job: WorkOrder, status: ItemStatus, code: Code) -> None:
        closed = CLOSED_AT_ONCE
        while closed == CLOSED_AT_ONCE:
            async with self._held(job) as (session, lane):
                items = await Ledger(session).close(lane.job_id, was=ItemStatus.PENDING, status=status, code=code)
                closed = len(items)
                counted = await self._tally(session, lane, items)
            await self._announce(lane, counted)

    # --- what the steps share ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _held(self, job: WorkOrder) -> AsyncIterator[tuple[AsyncSession, Lane]]:
        async with self._database.transaction() as session:
            if not await BatchRepository(session).hold(job):
                raise Stopped(StopReason.LEASE_LOST)
            yield session, _lane(job)

    async def _tally(
        self, session: AsyncSession, lane: Lane, finished: Sequence[Entry | Line], tired: int = 0
    ) -> bool | None:
        """Count what is finished. Returns whether that ended the whole; None if there was nothing to count."""
        if not finished and not tired:
            return None  # the row of the whole is everybody's: nobody touches it for nothing
        counts = Counter([item.status for item in finished])
        return await BatchRepository(session).tally(
            lane.job_id,
            succeeded=counts[ItemStatus.SUCCEEDED],
            failed=counts[ItemStatus.FAILED],
            skipped=counts[ItemStatus.SKIPPED] + tired,
        )

    async def _announce(self, lane: Lane, counted: bool | None) -> None:  # noqa: FBT001 (see `_tally`)
        """Say that the whole has changed, if it has."""
        if counted is None:
            return
        await self._queue.announce(lane.job_id)
        if counted:
            log.info("bulk.ended", job_id=str(lane.job_id))

    def _operation(self, lane: WorkOrder | Lane) -> Operation:
        """What this lane's job is for; one from before there were others does not say so."""
        return self._operations[lane.params.get("of", EXPAND)]


async def _decide(
    session: AsyncSession,
    operation: Operation,
    lane: Lane,
    found: Sequence[tuple[Line, Held | None]],
    used: Mapping[UUID, int],
) -> list[Entry]:
    """Decide about each volume: by its state, or else as the operation does."""
    by_state = [entry for item, volume in found if (entry := standing(item, volume, lane)) is not None]
    decided = {entry.volume_id for entry in by_state}
    available = [(item, volume) for item, volume in found if volume is not None and volume.id not in decided]
    return by_state + await operation.decide(session, lane, available, used)


def _tell(operation: Operation, entries: Sequence[Entry], sizes: Mapping[UUID, int | None]) -> None:
    event = f"volume.{operation.done}"
    for entry in _those(entries, ItemStatus.SUCCEEDED):
        log.debug(event, volume_id=str(entry.volume_id), size=sizes[entry.volume_id])


def _those(entries: Sequence[Entry], status: ItemStatus) -> list[Entry]:
    return [entry for entry in entries if entry.status is status]


def _lane(job: WorkOrder) -> Lane:
    if job.parent_id is None:
        raise RuntimeError(f"{job.kind} {job.id} is part of nothing")
    return Lane(job.parent_id, job.id, job.rings, job.params, job.created_by)
