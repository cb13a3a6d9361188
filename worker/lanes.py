"""Bulk work: a lane works on its volumes in an `asyncio.TaskGroup`, on as many at once as its semaphore has slots.

A lane works for about a second, then yields and is dispatched again. So lanes spread over free workers, other jobs are
not held up, and a killed worker costs at most one slice.
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
#: Target duration of the storage work on one chunk: shorter chunks need more statements, longer ones lose more work
#: when the worker dies.
_CHUNK_SECONDS: Final = 0.5
#: Items per slot in a lane's first chunk.
_FIRST_CHUNK_PER_SLOT: Final = 4
_MAX_CHUNK: Final = 500
_CANCEL_POLL_SECONDS: Final = 0.5
#: Interval at which finished items of a chunk are recorded while others of it are still being worked on.
_PARTIAL_RECORD_SECONDS: Final = 1.0
#: Delay until a lane retries volumes whose storage hangs.
_HUNG_RETRY_SECONDS: Final = 1.0
#: Maximum number of lanes whose chunk size a worker remembers.
_MAX_REMEMBERED: Final = 100

log = structlog.get_logger(__name__)


class Lanes:
    """Performs lanes in one worker."""

    def __init__(self, chunks: Chunks, fair_share: FairShare) -> None:
        self._chunks = chunks
        self._fair_share = fair_share
        #: The chunk size that each lane had reached here: a slice is too short to reach it again from the start.
        self._limits: dict[UUID, int] = {}

    async def work(self, job: ClaimedJob, grant: Grant) -> Outcome:
        """Work on one slice of a lane, first on items that an earlier attempt may have left unfinished.

        Raises:
            Stopped: the worker is shutting down or has lost the lane; the next attempt does what is not recorded.
        """
        lane = Lane.from_job(job)
        if lane.is_last:
            return await self._give_up(lane, grant)
        with self._fair_share.admit(lane) as admitted:
            return await self._work_slice(lane, grant) if admitted else Yielded()

    async def _work_slice(self, lane: Lane, grant: Grant) -> Outcome:
        ends_at = time.monotonic() + _SLICE_SECONDS
        limit = self._limits.pop(lane.job_id, lane.slots * _FIRST_CHUNK_PER_SLOT)
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
                if time.monotonic() >= ends_at:
                    self._remember_limit(lane.job_id, limit)
                    return Yielded()
                chunk = ClaimedChunk(0)

    def _remember_limit(self, lane_id: UUID, limit: int) -> None:
        """Store the chunk size of a lane; drop the oldest, as a lane that continues elsewhere never fetches its own."""
        self._limits[lane_id] = limit
        if len(self._limits) > _MAX_REMEMBERED:
            del self._limits[next(iter(self._limits))]

    async def _process_chunk(self, lane: Lane, chunk: ClaimedChunk, grant: Grant, cancelled: asyncio.Event) -> float:
        """Work on a chunk and record it. Returns the seconds of storage work, which determine the next chunk's size.

        The statements are not counted: where they are slow, smaller chunks would only mean more of them.
        """
        started_at = time.monotonic()
        results = await self._perform_items(lane, chunk.work, grant, cancelled)
        seconds = time.monotonic() - started_at
        await self._chunks.record(lane, results)
        grant.check()
        log.info("bulk.chunk", volumes=chunk.item_count, max_concurrent=lane.slots, seconds=round(seconds, 3))
        return seconds

    async def _perform_items(
        self, lane: Lane, items: Sequence[ItemWork], grant: Grant, cancelled: asyncio.Event
    ) -> Sequence[Result]:
        """Work on the items of a chunk; the failure of one does not stop another. Returns results not yet recorded.

        The semaphore limits how many are worked on at once. There are no more consumers than slots: one task per volume
        would cost ten times as much, and starting a thousand of them at once would block the event loop.
        """
        slots = asyncio.Semaphore(lane.slots)
        remaining = iter(_in_alternating_order(lane, items))
        results: list[Result] = []

        async def consume() -> None:
            for item in remaining:
                async with slots:
                    if cancelled.is_set() and not item.resumed:
                        result: Result | None = self._chunks.skip(item)
                    else:
                        result = await self._chunks.perform(lane, item, grant)
                if result is not None:
                    results.append(result)

        async with asyncio.TaskGroup() as group:
            consumers = {group.create_task(consume()) for _ in range(min(lane.slots, len(items)))}
            while consumers:
                _, consumers = await asyncio.wait(consumers, timeout=_PARTIAL_RECORD_SECONDS)
                count = len(results)
                if consumers and count and await self._record_partial(lane, results[:count]):
                    del results[:count]
        return results

    async def _record_partial(self, lane: Lane, results: Sequence[Result]) -> bool:
        """Record the finished items of a chunk, so that they do not wait for a volume whose storage hangs.

        Nothing is raised, because that would cancel the work on the other items. A lasting error is raised when the
        whole chunk is recorded, and recording an item twice has the effect of once.
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
        """Finish the lane if it has no items left; otherwise yield until the next item is due, or hung storage is."""
        delay = await self._chunks.next_due(lane)
        if await self._chunks.holds_any(lane):
            delay = min(_HUNG_RETRY_SECONDS, _HUNG_RETRY_SECONDS if delay is None else delay)
        return Succeeded({}) if delay is None else Yielded(delay)

    async def _give_up(self, lane: Lane, grant: Grant) -> Outcome:
        """Work as the last lane: seal and release every volume that earlier lanes left, and fail all pending items."""
        items = await self._chunks.reclaim_items(lane)
        work = await self._chunks.acquire_volumes(lane, items, {})
        results = [await self._chunks.fail(lane, item, grant) for item in work]
        await self._chunks.record(lane, [result for result in results if result is not None])
        grant.check()
        await self._chunks.fail_rest(lane)
        return Yielded(_HUNG_RETRY_SECONDS) if await self._chunks.holds_any(lane) else Succeeded({})

    @asynccontextmanager
    async def _cancellation(self, lane: Lane) -> AsyncIterator[asyncio.Event]:
        """Provide an event that is set once cancellation of the parent job was requested."""
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
                log.debug("lane.cancel_check_unavailable")  # the statements of the chunk raise it too
            except Exception:  # keep polling: the lane must stay cancellable after an unexpected error
                log.exception("lane.cancel_check_failed", job_id=str(lane.job_id))


def _in_alternating_order(lane: Lane, items: Sequence[ItemWork]) -> Sequence[ItemWork]:
    """Sort by volume id, in reverse order on every other attempt.

    If storage hangs over one volume, the volumes before it are done in one attempt, and those after it in the next.
    """
    return sorted(items, key=lambda item: item.volume_id, reverse=lane.epoch % 2 == 1)


def _next_limit(item_count: int, seconds: float, slots: int) -> int:
    """Return the size of the next chunk: what should take half a second, at most four times the size of this one."""
    fitting = int(item_count * _CHUNK_SECONDS / max(seconds, 0.001))
    return max(slots, min(fitting, item_count * 4, _MAX_CHUNK))
