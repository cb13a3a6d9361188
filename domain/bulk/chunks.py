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

from domain.bulk import effort
from domain.bulk.claims import Claims
from domain.bulk.kinds import EXPAND
from domain.bulk.ledger import CLOSED_AT_ONCE, Entry, Lane, Ledger, Line
from domain.bulk.operation import Operation, Result, Task, standing
from domain.bulk.states import FINISHED, Code, ItemStatus
from domain.database import Database
from domain.jobs.parents import ParentRepository
from domain.jobs.queue import JobQueue
from domain.storage.driver import Grant, Stopped, StopReason
from domain.volumes.repository import Held, VolumeRepository

log = structlog.get_logger(__name__)


class Taken(NamedTuple):
    """A chunk in the lane's hands: the number of items, and the tasks of those on which there is work to do."""

    items: int
    tasks: Sequence[Task] = ()


class Counted(enum.Enum):
    """What finished items have come to in the counters of the whole."""

    NOTHING = enum.auto()
    SOME = enum.auto()
    LAST = enum.auto()


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

    async def take_over(self, lane: Lane) -> Taken:
        """Take again what an earlier attempt of this lane has left behind."""
        return await self._taken(lane, await self.inherit(lane))

    async def take_more(self, lane: Lane, limit: int) -> Taken:
        """Claim up to ``limit`` items that wait, and take their volumes; at once, if nothing must be measured first."""
        if self._operation(lane).measures(lane.params):
            return await self._taken(lane, await self.claim(lane, limit))
        async with self._held(lane) as session:
            items = await Claims(session, lane).lock(limit)
            tasks, counted = await self._take(session, lane, items, {}) if items else ([], Counted.NOTHING)
        await self._announce(lane, counted)
        return Taken(len(items), tasks)

    async def _taken(self, lane: Lane, items: Sequence[Line]) -> Taken:
        return Taken(len(items), await self.take(lane, items, await self.measure(lane, items)) if items else [])

    async def inherit(self, lane: Lane) -> Sequence[Line]:
        """Claim again what an earlier attempt of this lane has left behind."""
        async with self._held(lane) as session:
            return await Claims(session, lane).inherit()

    async def claim(self, lane: Lane, limit: int) -> Sequence[Line]:
        """Claim up to ``limit`` items that wait."""
        async with self._held(lane) as session:
            return await Claims(session, lane).claim(limit)

    async def measure(self, lane: Lane, items: Sequence[Line]) -> dict[UUID, int]:
        """Measure what is to be known about these volumes; what cannot be measured is left out."""
        operation = self._operation(lane)
        return await operation.measure(items) if operation.measures(lane.params) else {}

    async def take(self, lane: Lane, items: Sequence[Line], used: Mapping[UUID, int]) -> list[Task]:
        """Take the volumes that are to be worked on, and write down what is to be done, under their locks."""
        async with self._held(lane) as session:
            tasks, counted = await self._take(session, lane, items, used)
        await self._announce(lane, counted)
        return tasks

    async def _take(
        self, session: AsyncSession, lane: Lane, items: Sequence[Line], used: Mapping[UUID, int]
    ) -> tuple[list[Task], Counted]:
        """As `take` does, for items that are all claimed, or all only locked; and count those that are finished."""
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

    async def next_due(self, lane: Lane) -> float | None:
        """In how many seconds there is something to claim again; None when nothing waits any more."""
        async with self._database.transaction() as session:
            return await Ledger(session).next_due(lane.job_id)

    async def holds_any(self, lane: Lane) -> bool:
        """Tell whether the lane still has volumes in its hands."""
        async with self._database.transaction() as session:
            return await Ledger(session).holds(lane)

    async def is_cancelled(self, lane: Lane) -> bool:
        """Tell whether the end of the whole job was asked for."""
        async with self._database.transaction() as session:
            return await ParentRepository(session).is_cancelled(lane.job_id)

    # --- work --------------------------------------------------------------------------------------------

    async def do(self, lane: Lane, task: Task, grant: Grant) -> Result | None:
        """Do the work on one volume.

        None: it is left as it is, in the lane's hands, because the attempt is to end, or because somebody holds the
        lock and may still publish. The lane's next slice tries again.
        """
        return await effort.done(self._operation(lane), task, grant)

    async def give_up(self, lane: Lane, task: Task, grant: Grant) -> Result | None:
        """Find out what other lanes have left of a volume, without trying again."""
        return await effort.given_up(self._operation(lane), task, grant)

    def leave(self, task: Task) -> Result:
        """Let a volume be on which nobody has begun to work, because the job was cancelled."""
        return effort.left(task)

    # --- record ------------------------------------------------------------------------------------------

    async def record(self, lane: Lane, results: Sequence[Result]) -> None:
        """Record what became of a chunk: volumes, items and counters, at once, as far as the lane still has them."""
        operation = self._operation(lane)
        sizes = {result.entry.volume_id: result.size for result in results}
        async with self._held(lane) as session:
            written = await Claims(session, lane).finish([result.entry for result in results])
            await operation.record(session, lane, written, sizes)
            counted = await self._tally(session, lane, written)
        await self._announce(lane, counted)
        if log.is_enabled_for(logging.DEBUG):  # asked once, and not for each of a million volumes
            _tell(operation, written, sizes)

    async def cancel_rest(self, lane: Lane) -> None:
        """Skip everything that still waits, since the job was cancelled."""
        await self._close_rest(lane, ItemStatus.SKIPPED, Code.CANCELLED)

    async def fail_rest(self, lane: Lane) -> None:
        """Fail everything that still waits, since no lane has come through."""
        await self._close_rest(lane, ItemStatus.FAILED, Code.LANES_LOST)

    async def _close_rest(self, lane: Lane, status: ItemStatus, code: Code) -> None:
        closed = CLOSED_AT_ONCE
        while closed == CLOSED_AT_ONCE:
            async with self._held(lane) as session:
                items = await Ledger(session).close(lane.job_id, was=ItemStatus.PENDING, status=status, code=code)
                closed = len(items)
                counted = await self._tally(session, lane, items)
            await self._announce(lane, counted)

    # --- what the steps share ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _held(self, lane: Lane) -> AsyncIterator[AsyncSession]:
        async with self._database.transaction() as session:
            if not await ParentRepository(session).hold(lane.lane_id, ring=lane.ring, worker_id=lane.worker_id):
                raise Stopped(StopReason.LEASE_LOST)
            yield session

    async def _tally(
        self, session: AsyncSession, lane: Lane, finished: Sequence[Entry | Line], tired: int = 0
    ) -> Counted:
        """Count what is finished, and so end the whole with its last item."""
        if not finished and not tired:
            return Counted.NOTHING  # the row of the whole is everybody's: nobody touches it for nothing
        counts = Counter([item.status for item in finished])
        has_ended = await ParentRepository(session).tally(
            lane.job_id,
            succeeded=counts[ItemStatus.SUCCEEDED],
            failed=counts[ItemStatus.FAILED],
            skipped=counts[ItemStatus.SKIPPED] + tired,
        )
        return Counted.LAST if has_ended else Counted.SOME

    async def _announce(self, lane: Lane, counted: Counted) -> None:
        """Say that the whole has changed, if it has."""
        if counted is Counted.NOTHING:
            return
        await self._queue.announce(lane.job_id)
        if counted is Counted.LAST:
            log.info("bulk.ended", job_id=str(lane.job_id))

    def _operation(self, lane: Lane) -> Operation:
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
