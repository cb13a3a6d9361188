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

from domain.bulk.chunks import Chunks, ClaimedChunk
from domain.bulk.ledger import Lane
from domain.bulk.operation import ItemWork, Result
from domain.errors import CisternError, DatabaseUnavailable
from domain.jobs.claimed import ClaimedJob
from domain.jobs.outcomes import Outcome, Succeeded, Yielded
from domain.storage.context import Grant
from domain.tasks import in_background
from worker.fair_share import FairShare

_SLICE_SECONDS: Final = 1.0
#: A chunk's storage work should last so long: shorter ones cost more statements, longer ones more when they are lost.
_CHUNK_SECONDS: Final = 0.5
#: Items for each slot in a lane's first chunk.
_FIRST_CHUNK_PER_SLOT: Final = 4
_MAX_CHUNK: Final = 500
#: How often a lane looks whether its job was cancelled.
_CANCEL_POLL_SECONDS: Final = 0.5
#: When what a chunk has come to is recorded although some of it is still going on, and how often from then on.
_PARTIAL_RECORD_SECONDS: Final = 1.0
#: How soon a lane comes back for volumes over which storage hangs.
_HUNG_RETRY_SECONDS: Final = 1.0
#: Of so many lanes a worker remembers how large their chunks were.
_MAX_REMEMBERED: Final = 100

log = structlog.get_logger(__name__)


class Lanes:
    """What a worker does for lanes."""

    def __init__(self, chunks: Chunks, fair_share: FairShare) -> None:
        self._chunks = chunks
        self._fair_share = fair_share
        #: How large a chunk a lane had come to here; a slice would be over before it had grown again.
        self._limits: dict[UUID, int] = {}

    async def work(self, job: ClaimedJob, grant: Grant) -> Outcome:
        """Work on one slice of a lane, starting with what a predecessor may have left behind.

        Raises:
            Stopped: the worker shuts down or has lost the lane; what is not recorded is left to the successor.
        """
        lane = Lane.from_job(job)
        if lane.is_last:
            return await self._abandon(lane, grant)
        with self._fair_share.admit(lane) as is_ours:
            return await self._slice(lane, grant) if is_ours else Yielded()

    async def _slice(self, lane: Lane, grant: Grant) -> Outcome:
        ends = time.monotonic() + _SLICE_SECONDS
        limit = self._limits.pop(lane.lane_id, lane.slots * _FIRST_CHUNK_PER_SLOT)
        chunk = await self._chunks.resume(lane)
        async with self._cancellation(lane) as cancelled:
            while True:
                if cancelled.is_set():
                    await self._chunks.cancel_rest(lane)
                if not chunk.item_count:
                    chunk = await self._chunks.claim_next(lane, limit)
                if not chunk.item_count:
                    return await self._finish_or_wait(lane)
                seconds = await self._process_chunk(lane, chunk, grant, cancelled)
                limit = _next_limit(chunk.item_count, seconds, lane.slots)
                if time.monotonic() >= ends:
                    self._remember_limit(lane.lane_id, limit)
                    return Yielded()
                chunk = ClaimedChunk(0)

    def _remember_limit(self, lane_id: UUID, limit: int) -> None:
        """Lanes whose next slice is another worker's never come for theirs: the oldest are forgotten."""
        self._limits[lane_id] = limit
        if len(self._limits) > _MAX_REMEMBERED:
            del self._limits[next(iter(self._limits))]

    async def _process_chunk(self, lane: Lane, chunk: ClaimedChunk, grant: Grant, cancelled: asyncio.Event) -> float:
        """Work on a chunk and record it. Returns how many seconds the work took, by which the next one is sized.

        Not the whole: where statements are slow, smaller chunks would only mean more of them.
        """
        started = time.monotonic()
        results = await self._work_on(lane, chunk.work, grant, cancelled)
        seconds = time.monotonic() - started
        await self._chunks.record(lane, results)
        grant.check()
        log.info("bulk.chunk", volumes=chunk.item_count, max_concurrent=lane.slots, seconds=round(seconds, 3))
        return seconds

    async def _work_on(
        self, lane: Lane, tasks: Sequence[ItemWork], grant: Grant, cancelled: asyncio.Event
    ) -> Sequence[Result]:
        """Work on a chunk's volumes; no failure of one of them stops another. Returns what is still to be recorded.

        The semaphore says how many at once. There are no more hands than that, as a task for each volume would cost
        ten times as much, and a thousand of them, begun at once, would hold everybody else up.
        """
        slots = asyncio.Semaphore(lane.slots)
        left = iter(_alternating(lane, tasks))
        results: list[Result] = []

        async def consume() -> None:
            for task in left:
                async with slots:
                    if cancelled.is_set() and not task.resumed:
                        result: Result | None = self._chunks.skip(task)
                    else:
                        result = await self._chunks.perform(lane, task, grant)
                if result is not None:
                    results.append(result)

        async with asyncio.TaskGroup() as group:
            running = {group.create_task(consume()) for _ in range(min(lane.slots, len(tasks)))}
            while running:
                _, running = await asyncio.wait(running, timeout=_PARTIAL_RECORD_SECONDS)
                so_far = len(results)
                if running and so_far and await self._record_partial(lane, results[:so_far]):
                    del results[:so_far]
        return results

    async def _record_partial(self, lane: Lane, results: Sequence[Result]) -> bool:
        """Record what a chunk has come to so far: it must not wait for a volume over which storage hangs.

        Nothing may be raised here, where it would cancel work that is going on; what is in the way will still be so
        when the whole chunk is recorded. Recorded twice is recorded once.
        """
        try:
            await self._chunks.record(lane, results)
        except CisternError as error:
            log.debug("lane.partial_record_failed", error=error.message)
            return False
        except Exception:
            log.exception("lane.partial_record_failed")
            return False
        return True

    async def _finish_or_wait(self, lane: Lane) -> Outcome:
        """Nothing is due: come back when busy volumes are tried again, or end with empty hands."""
        waiting = await self._chunks.next_due(lane)
        if await self._chunks.holds_any(lane):
            waiting = min(_HUNG_RETRY_SECONDS, _HUNG_RETRY_SECONDS if waiting is None else waiting)
        return Succeeded({}) if waiting is None else Yielded(waiting)

    async def _abandon(self, lane: Lane, grant: Grant) -> Outcome:
        """Be the last lane: let every volume go as it is found to be, and fail what waits."""
        items = await self._chunks.reclaim_items(lane)
        tasks = await self._chunks.acquire_volumes(lane, items, {})
        results = [await self._chunks.fail(lane, task, grant) for task in tasks]
        await self._chunks.record(lane, [result for result in results if result is not None])
        grant.check()
        await self._chunks.fail_rest(lane)
        return Yielded(_HUNG_RETRY_SECONDS) if await self._chunks.holds_any(lane) else Succeeded({})

    @asynccontextmanager
    async def _cancellation(self, lane: Lane) -> AsyncIterator[asyncio.Event]:
        """An event that is set as soon as the end of the whole job was asked for."""
        cancelled = asyncio.Event()
        if await self._chunks.is_cancelled(lane):
            cancelled.set()
        async with in_background(self._poll_cancellation(lane, cancelled)):
            yield cancelled

    async def _poll_cancellation(self, lane: Lane, cancelled: asyncio.Event) -> None:
        while not cancelled.is_set():
            await asyncio.sleep(_CANCEL_POLL_SECONDS)
            try:
                if await self._chunks.is_cancelled(lane):
                    cancelled.set()
            except DatabaseUnavailable:
                log.debug("lane.cancel_check_unavailable")  # then the chunk's own statements will say so
            except Exception:
                # A lane that is blind must not be deaf too.
                log.exception("lane.cancel_check_failed", job_id=str(lane.lane_id))


def _alternating(lane: Lane, tasks: Sequence[ItemWork]) -> Sequence[ItemWork]:
    """From one end and, in the next attempt, from the other: so all but the volume itself come past one that hangs."""
    return sorted(tasks, key=lambda task: task.volume_id, reverse=lane.epoch % 2 == 1)


def _next_limit(done: int, seconds: float, slots: int) -> int:
    """How many items the next chunk takes: as many as should last half a second, at most four times as many as now."""
    fitting = int(done * _CHUNK_SECONDS / max(seconds, 0.001))
    return max(slots, min(fitting, done * 4, _MAX_CHUNK))
