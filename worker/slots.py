"""The slots in which jobs are at work, and how many jobs are fetched ahead: none shall stand empty for a claim."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

#: So long, about, a job may wait for its slot that was fetched ahead (seconds): not much longer than a claim takes.
_AHEAD_SECONDS: Final = 0.02
#: So long it waits before others may have it: the slots have turned out to be slow.
_PATIENCE_SECONDS: Final = 1.0
#: The longest time between two slots that come free which is told from others; so it is taken to be at first (seconds).
_SLOW: Final = 1.0
#: The shortest (seconds).
_INSTANT: Final = 1e-6
#: The weight of the last such time in the mean of those before it.
_WEIGHT: Final = 1 / 16


class Slots:
    """So many jobs may be at work at once."""

    def __init__(self, number: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.number = number
        self._free = asyncio.Semaphore(number)
        self._clock = clock
        self._came_free_at = clock()
        #: The mean of the times between slots that have come free lately.
        self._interval = _SLOW

    @property
    def ahead(self) -> int:
        """How many slots will come free in about no time; those that hang are not among them."""
        return min(int(_AHEAD_SECONDS / max(self._interval, _INSTANT)), self.number)

    async def take(self) -> bool:
        """Wait for a slot. False: none came free."""
        if not self._free.locked():
            return await self._free.acquire()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._free.acquire()
        except TimeoutError:
            self._interval = _SLOW  # nothing more is fetched ahead until they are quick again
            return False

    def give_back(self) -> None:
        """Leave a slot to the next job."""
        now = self._clock()
        self._interval += (min(now - self._came_free_at, _SLOW) - self._interval) * _WEIGHT
        self._came_free_at = now
        self._free.release()
