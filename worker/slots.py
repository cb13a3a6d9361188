"""The slots in which jobs run, and how many jobs to fetch ahead so that no slot is idle during a claim."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

#: Fetch ahead as many jobs as will probably find a slot within this time, which is about the duration of a claim.
_LOOKAHEAD_SECONDS: Final = 0.02
#: Maximum time that a job which was fetched ahead waits for a slot, before it is released to other workers.
_MAX_WAIT_SECONDS: Final = 1.0
#: Maximum interval that is counted, so that one pause does not outweigh a hundred quick jobs; also the initial mean.
_MAX_INTERVAL: Final = 1.0
#: Minimum mean interval, as a divisor.
_MIN_INTERVAL: Final = 1e-6
#: Weight of the latest interval in the moving average.
_SMOOTHING: Final = 1 / 16


class Slots:
    """Limits how many jobs run at once.

    The number of jobs to fetch ahead follows from the recent mean interval between releases: as many as slots will
    become free during a claim, but at most the number of slots.
    """

    def __init__(self, number: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.number = number
        self._free = asyncio.Semaphore(number)
        self._clock = clock
        self._released_at = clock()
        self._mean_interval = _MAX_INTERVAL

    @property
    def ahead(self) -> int:
        """How many jobs to fetch beyond the number of slots; 0 while slots are released slowly, or not at all."""
        return min(int(_LOOKAHEAD_SECONDS / max(self._mean_interval, _MIN_INTERVAL)), self.number)

    async def acquire(self) -> bool:
        """Wait for a slot. False: none became free; then nothing is fetched ahead until releases are quick again."""
        if not self._free.locked():  # the common case: a timeout would cost more than the slot itself
            return await self._free.acquire()
        try:
            async with asyncio.timeout(_MAX_WAIT_SECONDS):
                return await self._free.acquire()
        except TimeoutError:
            self._mean_interval = _MAX_INTERVAL
            return False

    def release(self) -> None:
        """Free a slot for the next job."""
        now = self._clock()
        interval = min(now - self._released_at, _MAX_INTERVAL)
        self._mean_interval += (interval - self._mean_interval) * _SMOOTHING
        self._released_at = now
        self._free.release()
