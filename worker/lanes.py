"""Bulk work: a lane has its volumes in an `asyncio.TaskGroup`, as many at once as its semaphore has slots.

A lane works for about a second, then rings for itself anew: so lanes spread over free workers, other jobs get their
turn, and a killed worker costs at most a slice.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

import structlog

from domain.background import in_background
from domain.bulk.chunks import Chunks, Taken
from domain.bulk.ledger import Lane
from domain.bulk.operation import Result, Task
from domain.errors import CisternError, DatabaseUnavailable
from domain.jobs.orders import WorkOrder
from domain.jobs.outcomes import Done, Outcome, Yielded
from domain.storage.driver import Grant
from worker.sharing import Sharing

_SLICE_SECONDS: Final = 1.0
#: A chunk's storage work should last so long: shorter ones cost more statements, longer ones more when they are lost.
_CHUNK_SECONDS: Final = 0.5
#: Items for each slot in a lane's first chunk.
_FIRST_CHUNK: Final = 4
_MAX_CHUNK: Final = 500
#: How often a lane looks whether its job was cancelled.
_LOOK_SECONDS: Final = 0.5
#: When what a chunk has come to is recorded although some of it is still going on, and how often from then on.
_EARLY_SECONDS: Final = 1.0
#: How soon a lane comes back for volumes over which storage hangs.
_AGAIN_SECONDS: Final = 1.0
#: Of so many lanes a worker remembers how large their chunks were.
_REMEMBERED: Final = 100

log = structlog.get_logger(__name__)


class Lanes:
    """What a worker does for lanes."""

    def __init__(self, chunks: Chunks, sharing: Sharing) -> None:
        self._chunks = chunks
        self._sharing = sharing
        #: How large a chunk a lane had come to here; a slice would be over before it had grown again.
        self._limits: dict[UUID, int] = {}

    async def work(self, job: WorkOrder, grant: Grant) -> Outcome:
        """Work on one slice of a lane, starting with what a predecessor may have left behind.

        Raises:
            Stopped: the worker shuts down or has lost the lane; what is not recorded is left to the successor.
        """
        lane = Lane.of(job)
        if lane.is_last:
            return await self._give_up(lane, grant)
        with self._sharing.taking(lane) as is_ours:
            return await self._slice(lane, grant) if is_ours else Yielded()

    async def _slice(self, lane: Lane, grant: Grant) -> Outcome:
        ends = time.monotonic() + _SLICE_SECONDS
        limit = self._limits.pop(lane.lane_id, lane.slots * _FIRST_CHUNK)
        taken = await self._chunks.take_over(lane)
        async with self._cancellation(lane) as cancelled:
            while True:
                if cancelled.is_set():
                    await self._chunks.cancel_rest(lane)
                if not taken.items:
                    taken = await self._chunks.take_more(lane, limit)
                if not taken.items:
                    return await self._rest(lane)
                seconds = await self._carry_out(lane, taken, grant, cancelled)
                limit = _next_limit(taken.items, seconds, lane.slots)
                if time.monotonic() >= ends:
                    self._remember(lane.lane_id, limit)
                    return Yielded()
                taken = Taken(0)

    def _remember(self, lane_id: UUID, limit: int) -> None:
        """Lanes whose next slice is another worker's never come for theirs: the oldest are forgotten."""
        self._limits[lane_id] = limit
        if len(self._limits) > _REMEMBERED:
            del self._limits[next(iter(self._limits))]

    async def _carry_out(self, lane: Lane, taken: Taken, grant: Grant, cancelled: asyncio.Event) -> float:
        """Work on a chunk and record it. Returns how many seconds the work took, by which the next one is sized.

        Not the whole: where statements are slow, smaller chunks would only mean more of them.
        """
        started = time.monotonic()
        results = await self._work_on(lane, taken.tasks, grant, cancelled)
        seconds = time.monotonic() - started
        await self._chunks.record(lane, results)
        grant.check()
        log.info("bulk.chunk", volumes=taken.items, max_concurrent=lane.slots, seconds=round(seconds, 3))
        return seconds

    async def _work_on(
        self, lane: Lane, tasks: Sequence[Task], grant: Grant, cancelled: asyncio.Event
    ) -> Sequence[Result]:
        """Work on a chunk's volumes; no failure of one of them stops another. Returns what is still to be recorded.

        The semaphore says how many at once. There are no more hands than that, as a task for each volume would cost
        ten times as much, and a thousand of them, begun at once, would hold everybody else up.
        """
        slots = asyncio.Semaphore(lane.slots)
        left = iter(_in_turn(lane, tasks))
        results: list[Result] = []

        async def hand() -> None:
            for task in left:
                async with slots:
                    if cancelled.is_set() and not task.begun:
                        result: Result | None = self._chunks.leave(task)
                    else:
                        result = await self._chunks.do(lane, task, grant)
                if result is not None:
                    results.append(result)

        async with asyncio.TaskGroup() as group:
            running = {group.create_task(hand()) for _ in range(min(lane.slots, len(tasks)))}
            while running:
                _, running = await asyncio.wait(running, timeout=_EARLY_SECONDS)
                so_far = len(results)
                if running and so_far and await self._record_early(lane, results[:so_far]):
                    del results[:so_far]
        return results

    async def _record_early(self, lane: Lane, results: Sequence[Result]) -> bool:
        """Record what a chunk has come to so far: it must not wait for a volume over which storage hangs.

        Nothing may be raised here, where it would cancel work that is going on; what is in the way will still be so
        when the whole chunk is recorded. Recorded twice is recorded once.
        """
        try:
            await self._chunks.record(lane, results)
        except CisternError as error:
            log.debug("bulk.not_yet_recorded", error=error.message)
            return False
        except Exception:
            log.exception("bulk.not_yet_recorded")
            return False
        return True

    async def _rest(self, lane: Lane) -> Outcome:
        """Nothing is due: come back when busy volumes are tried again, or end with empty hands."""
        waiting = await self._chunks.next_due(lane)
        if await self._chunks.holds_any(lane):
            waiting = min(_AGAIN_SECONDS, _AGAIN_SECONDS if waiting is None else waiting)
        return Done({}) if waiting is None else Yielded(waiting)

    async def _give_up(self, lane: Lane, grant: Grant) -> Outcome:
        """Be the last lane: let every volume go as it is found to be, and fail what waits."""
        items = await self._chunks.inherit(lane)
        tasks = await self._chunks.take(lane, items, {})
        results = [await self._chunks.give_up(lane, task, grant) for task in tasks]
        await self._chunks.record(lane, [result for result in results if result is not None])
        grant.check()
        await self._chunks.fail_rest(lane)
        return Yielded(_AGAIN_SECONDS) if await self._chunks.holds_any(lane) else Done({})

    @asynccontextmanager
    async def _cancellation(self, lane: Lane) -> AsyncIterator[asyncio.Event]:
        """An event that is set as soon as the end of the whole job was asked for."""
        cancelled = asyncio.Event()
        if await self._chunks.is_cancelled(lane):
            cancelled.set()
        async with in_background(self._look_for_cancellation(lane, cancelled)):
            yield cancelled

    async def _look_for_cancellation(self, lane: Lane, cancelled: asyncio.Event) -> None:
        while not cancelled.is_set():
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                if await self._chunks.is_cancelled(lane):
                    cancelled.set()
            except DatabaseUnavailable:
                log.debug("bulk.blind")  # then the chunk's own statements will say so
            except Exception:
                # A lane that is blind must not be deaf too.
                log.exception("bulk.look_crashed", job_id=str(lane.lane_id))


def _in_turn(lane: Lane, tasks: Sequence[Task]) -> Sequence[Task]:
    """From one end and, in the next attempt, from the other: so all but the volume itself come past one that hangs."""
    return sorted(tasks, key=lambda task: task.volume_id, reverse=lane.ring % 2 == 1)


def _next_limit(done: int, seconds: float, slots: int) -> int:
    """How many items the next chunk takes: as many as should last half a second, at most four times as many as now."""
    fitting = int(done * _CHUNK_SECONDS / max(seconds, 0.001))
    return max(slots, min(fitting, done * 4, _MAX_CHUNK))
