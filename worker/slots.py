"""The slots of a worker, and its load: how many jobs run at once, and how many more to fetch."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

#: Fetch ahead as many jobs as will probably find a slot within this time. It is several times the duration of a fetch
#: and a claim, so that Redis, PostgreSQL and this process each have jobs to work on at the same time.
_LOOKAHEAD_SECONDS: Final = 0.1
#: Maximum number of jobs fetched ahead per slot. Each takes 8 KB of memory; 8 per slot were no faster.
_MAX_AHEAD_PER_SLOT: Final = 5
#: Maximum time that a job which was fetched ahead waits for a slot, before it is released to other workers.
_MAX_WAIT_SECONDS: Final = 1.0
#: Maximum interval that is counted, so that one pause does not outweigh a hundred quick jobs; also the initial mean.
_MAX_INTERVAL_SECONDS: Final = 1.0
#: Minimum mean interval, so that nothing is divided by zero.
_MIN_INTERVAL_SECONDS: Final = 1e-6
#: Weight of the latest interval in the moving average.
_SMOOTHING: Final = 1 / 16


class Slots:
    """Limits how many jobs run at once.

    The number of jobs to fetch ahead follows from the recent mean interval between releases, and is limited per slot.
    """

    def __init__(self, number: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.number = number
        self._free = asyncio.Semaphore(number)
        self._clock = clock
        self._released_at = clock()
        self._mean_interval = _MAX_INTERVAL_SECONDS

    @property
    def ahead(self) -> int:
        """How many jobs to fetch beyond the number of slots; 0 while slots are released slowly, or not at all."""
        interval = max(self._mean_interval, _MIN_INTERVAL_SECONDS)
        return min(int(_LOOKAHEAD_SECONDS / interval), _MAX_AHEAD_PER_SLOT * self.number)

    async def acquire(self) -> bool:
        """Wait for a slot. False: none became free; then nothing is fetched ahead until releases are quick again."""
        if not self._free.locked():  # the common case: a timeout would cost more than the slot itself
            return await self._free.acquire()
        try:
            async with asyncio.timeout(_MAX_WAIT_SECONDS):
                return await self._free.acquire()
        except TimeoutError:
            self._mean_interval = _MAX_INTERVAL_SECONDS
            return False

    def release(self) -> None:
        """Free a slot for the next job."""
        now = self._clock()
        interval = min(now - self._released_at, _MAX_INTERVAL_SECONDS)
        self._mean_interval += (interval - self._mean_interval) * _SMOOTHING
        self._released_at = now
        self._free.release()


class Load:
    """Counts the jobs that a worker is busy with, to tell how many more to fetch.

    A job counts from before its claim until it is settled. It needs a slot until its work has ended.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._jobs = 0
        self._needing_slot = 0
        #: Set whenever `capacity` may have become larger than 0.
        self.freed = asyncio.Event()

    @property
    def capacity(self) -> int:
        """How many more messages to fetch now: one per slot, and some ahead for slots that will soon be free.

        At most twice as many jobs may be unsettled; beyond that the capacity is 0. It is also 0 while half of those to
        be fetched ahead are there: then the next fetch and its claim are of many at once.
        """
        ahead = self._slots.ahead
        maximum = self._slots.number + ahead
        free = min(maximum - self._needing_slot, 2 * maximum - self._jobs)
        return free if free > ahead // 2 else 0

    def add(self, count: int) -> None:
        """Count messages that are about to be claimed."""
        self._jobs += count
        self._needing_slot += count

    def remove(self, count: int) -> None:
        """Stop counting messages that were not claimed."""
        self._jobs -= count
        self.end_work(count)

    def end_work(self, count: int = 1) -> None:
        """Note that jobs need no slot any more; they may still have to be settled."""
        self._needing_slot -= count
        self._announce()

    def settle(self) -> None:
        """Stop counting a job."""
        self._jobs -= 1
        self._announce()

    def _announce(self) -> None:
        if not self.freed.is_set() and self.capacity:
            self.freed.set()
