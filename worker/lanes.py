"""Bulk work: a lane works on its volumes in an `asyncio.TaskGroup`, on as many at once as its semaphore has slots.

A lane works for about a second, then yields and is dispatched again. So lanes spread over free workers, other jobs are
not held up, and a killed worker costs at most one slice.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final
from uuid import UUID

import structlog

from domain.bulk.chunks import ClaimedChunk, LaneSteps
from domain.bulk.ledger import AS_CANCELLED, AS_LANES_LOST
from domain.bulk.model import Lane
from domain.bulk.operation import ItemWork, Result
from domain.bulk.service import BulkService
from domain.errors import CisternError, DatabaseUnavailable
from domain.jobs.attempt import ClaimedJob, Outcome, Succeeded, Yielded
from domain.jobs.kinds import JobHandler
from domain.storage.context import Grant
from domain.tasks import in_background

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
#: Maximum number of lanes that a worker remembers for each purpose; most of them never return to it.
_MAX_REMEMBERED: Final = 100

log = structlog.get_logger(__name__)


class FairShare:
    """Spreads the lanes of a bulk job over the workers: a worker that runs its share of them yields further ones.

    Otherwise the worker that polls right after many lanes were dispatched would claim all of them, and others be idle.
    """

    def __init__(self, count_workers: Callable[[], int]) -> None:
        """``count_workers`` returns the number of live workers."""
        self._count_workers = count_workers
        self._running: Counter[UUID] = Counter()
        self._yielded_epochs: dict[UUID, int] = {}

    @contextmanager
    def admit(self, lane: Lane) -> Iterator[bool]:
        """Count a lane as running here while the block runs; yield whether this worker should work on it."""
        self._running[lane.parent_id] += 1
        try:
            yield self._running[lane.parent_id] <= self._share(lane) or self._returned_at_once(lane)
        finally:
            self._running[lane.parent_id] -= 1
            self._running += Counter()  # drops parent jobs with no lanes left here

    def _share(self, lane: Lane) -> float:
        return math.inf if lane.lanes is None else math.ceil(lane.lanes / max(self._count_workers(), 1))

    def _returned_at_once(self, lane: Lane) -> bool:
        """Return whether the lane came back at once: no other worker wants it. Otherwise record that it is yielded."""
        if self._yielded_epochs.pop(lane.job_id, None) == lane.epoch - 1:
            return True
        _remember(self._yielded_epochs, lane, lane.epoch)
        return False


class LaneHandler(JobHandler):
    """The handler of lanes.

    It records and seals nothing of its own: every chunk is recorded when its work ends, and the items of a failed lane
    are reassigned by `BulkService.assign_lanes`.
    """

    def __init__(self, bulk: BulkService, fair_share: FairShare) -> None:
        self._bulk = bulk
        self._fair_share = fair_share
        #: The chunk size that each lane had reached here: a slice is too short to reach it again from the start.
        self._chunk_sizes: dict[UUID, int] = {}

    async def perform(self, job: ClaimedJob, grant: Grant) -> Outcome:
        """Work on one slice of a lane, first on items that an earlier attempt may have left unfinished.

        Raises:
            Stopped: the worker is shutting down or has lost the lane; the next attempt does what is not recorded.
        """
        lane = Lane.from_job(job)
        run = LaneRun(self._bulk.lane_steps(lane), grant, self._chunk_sizes)
        if lane.is_last:
            return await run.give_up()
        with self._fair_share.admit(lane) as admitted:
            return await run.work_slice() if admitted else Yielded()


class LaneRun:
    """One attempt at a lane, for one slice of time."""

    def __init__(self, steps: LaneSteps, grant: Grant, chunk_sizes: dict[UUID, int]) -> None:
        """Prepare the run; ``chunk_sizes`` has the chunk sizes of lanes that continue."""
        self._steps = steps
        self._lane = steps.lane
        self._grant = grant
        self._chunk_sizes = chunk_sizes
        #: Set once cancellation of the bulk job was requested.
        self._cancelled = asyncio.Event()

    async def work_slice(self) -> Outcome:
        """Work on chunk after chunk until the slice is over or no item is left."""
        ends_at = time.monotonic() + _SLICE_SECONDS
        chunk_size = self._chunk_sizes.pop(self._lane.job_id, self._lane.slots * _FIRST_CHUNK_PER_SLOT)
        chunk = await self._steps.resume()
        async with self._polling_cancellation():
            while True:
                if self._cancelled.is_set():
                    await self._steps.close_pending(AS_CANCELLED)
                if not chunk.item_count:
                    chunk = await self._steps.claim_next(chunk_size)
                if not chunk.item_count:
                    return await self._finish_or_wait()
                seconds = await self._process_chunk(chunk)
                chunk_size = _next_chunk_size(chunk.item_count, seconds, self._lane.slots)
                if time.monotonic() >= ends_at:
                    _remember(self._chunk_sizes, self._lane, chunk_size)
                    return Yielded()
                chunk = ClaimedChunk(0)

    async def _process_chunk(self, chunk: ClaimedChunk) -> float:
        """Work on a chunk and record it. Returns the seconds of storage work, which determine the next chunk's size.

        The statements are not counted: where they are slow, smaller chunks would only mean more of them.
        """
        started_at = time.monotonic()
        results = await self._perform_items(chunk.work)
        seconds = time.monotonic() - started_at
        await self._steps.record(results)
        self._grant.check()
        slots = self._lane.slots
        log.info("bulk.chunk", volumes=chunk.item_count, max_concurrent=slots, seconds=round(seconds, 3))
        return seconds

    async def _perform_items(self, items: Sequence[ItemWork]) -> Sequence[Result]:
        """Work on the items of a chunk; the failure of one does not stop another. Returns results not yet recorded.

        The semaphore limits how many are worked on at once. There are no more consumers than slots: one task per volume
        would cost ten times as much, and starting a thousand of them at once would block the event loop.
        """
        slots, operation = asyncio.Semaphore(self._lane.slots), self._steps.operation
        remaining = iter(_in_alternating_order(self._lane, items))
        results: list[Result] = []

        async def consume() -> None:
            for item in remaining:
                async with slots:
                    if self._cancelled.is_set() and not item.resumed:
                        result: Result | None = operation.skip(item)
                    else:
                        result = await operation.work_on(item, self._grant)
                if result is not None:
                    results.append(result)

        async with asyncio.TaskGroup() as group:
            consumers = {group.create_task(consume()) for _ in range(min(self._lane.slots, len(items)))}
            while consumers:
                _, consumers = await asyncio.wait(consumers, timeout=_PARTIAL_RECORD_SECONDS)
                count = len(results)
                if consumers and count and await self._record_partial(results[:count]):
                    del results[:count]
        return results

    async def _record_partial(self, results: Sequence[Result]) -> bool:
        """Record the finished items of a chunk, so that they do not wait for a volume whose storage hangs.

        Nothing is raised, because that would cancel the work on the other items. A lasting error is raised when the
        whole chunk is recorded, and recording an item twice has the effect of once.
        """
        try:
            await self._steps.record(results)
        except CisternError as error:
            log.debug("lane.partial_record_failed", error=error.message)
            return False
        except Exception:
            log.exception("lane.partial_record_failed")
            return False
        return True

    async def _finish_or_wait(self) -> Outcome:
        """Finish the lane if it has no items left; otherwise yield until the next item is due, or hung storage is."""
        delay = await self._steps.next_due()
        return Succeeded({}) if delay is None else Yielded(delay)

    async def give_up(self) -> Outcome:
        """Work as the last lane: seal and release every volume that earlier lanes left, and fail all pending items."""
        work = await self._steps.acquire_volumes(await self._steps.reclaim_items(), {})
        results = [await self._steps.operation.fail(item, self._grant) for item in work]
        await self._steps.record([result for result in results if result is not None])
        self._grant.check()
        await self._steps.close_pending(AS_LANES_LOST, backend=self._lane.backend)
        return await self._finish_or_wait()

    @asynccontextmanager
    async def _polling_cancellation(self) -> AsyncIterator[None]:
        """Learn of a requested cancellation at once and during the block."""
        if await self._steps.is_cancelled():
            self._cancelled.set()
        async with in_background(self.poll_cancellation()):
            yield

    async def poll_cancellation(self) -> None:
        """Poll until cancellation was requested."""
        while not self._cancelled.is_set():
            await asyncio.sleep(_CANCEL_POLL_SECONDS)
            try:
                if await self._steps.is_cancelled():
                    self._cancelled.set()
            except DatabaseUnavailable:
                log.debug("lane.cancel_check_unavailable")  # the statements of the chunk raise it too
            except Exception:  # keep polling: the lane must stay cancellable after an unexpected error
                log.exception("lane.cancel_check_failed", job_id=str(self._lane.job_id))


def _remember(values: dict[UUID, int], lane: Lane, value: int) -> None:
    """Store a value of a lane; drop the oldest, as a lane that continues elsewhere never fetches its own."""
    values[lane.job_id] = value
    if len(values) > _MAX_REMEMBERED:
        del values[next(iter(values))]


def _in_alternating_order(lane: Lane, items: Sequence[ItemWork]) -> Sequence[ItemWork]:
    """Sort by volume id, in reverse order on every other attempt.

    If storage hangs over one volume, the volumes before it are done in one attempt, and those after it in the next.
    """
    return sorted(items, key=lambda item: item.volume_id, reverse=lane.epoch % 2 == 1)


def _next_chunk_size(item_count: int, seconds: float, slots: int) -> int:
    """Return the size of the next chunk: what should take half a second, at most four times the size of this one."""
    fitting = int(item_count * _CHUNK_SECONDS / max(seconds, 0.001))
    return max(slots, min(fitting, item_count * 4, _MAX_CHUNK))
