"""The slots in which jobs are at work, and how many jobs are fetched ahead: none shall stand empty for a claim."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

#: As many are fetched ahead as will probably find a slot within this time, which is about what a claim takes.
_LOOKAHEAD_SECONDS: Final = 0.02
#: If a job that was fetched ahead finds none for so long, others may have it.
_MAX_WAIT_SECONDS: Final = 1.0
#: An interval counts for no more than this, so that a pause does not outweigh a hundred quick jobs; the first guess.
_MAX_INTERVAL: Final = 1.0
#: And for no less, so that there is something to divide by.
_MIN_INTERVAL: Final = 1e-6
#: The weight of the latest interval in the moving average.
_SMOOTHING: Final = 1 / 16


class Slots:
    """So many jobs may be at work at once.

    How many are fetched ahead follows from the mean interval at which slots have come free lately: those that will
    come free within the time of a claim, but never more than there are slots.
    """

    def __init__(self, number: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.number = number
        self._free = asyncio.Semaphore(number)
        self._clock = clock
        self._came_free_at = clock()
        self._mean_interval = _MAX_INTERVAL

    @property
    def ahead(self) -> int:
        """How many jobs are worth fetching beyond the slots; none while the slots are slow, or hang."""
        return min(int(_LOOKAHEAD_SECONDS / max(self._mean_interval, _MIN_INTERVAL)), self.number)

    async def acquire(self) -> bool:
        """Wait for a slot. False: none came free, and nothing more is fetched ahead until they are quick again."""
        if not self._free.locked():  # as nearly always; a timer would cost more than the slot
            return await self._free.acquire()
        try:
            async with asyncio.timeout(_MAX_WAIT_SECONDS):
                return await self._free.acquire()
        except TimeoutError:
            self._mean_interval = _MAX_INTERVAL
            return False

    def release(self) -> None:
        """Leave a slot to the next job."""
        now = self._clock()
        interval = min(now - self._came_free_at, _MAX_INTERVAL)
        self._mean_interval += (interval - self._mean_interval) * _SMOOTHING
        self._came_free_at = now
        self._free.release()
