"""The slots of a worker: how many jobs run at once, and how many are fetched ahead for slots that will soon be free."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

#: Fetch ahead as many jobs as will probably find a slot within this time. It is several times the duration of a fetch
#: and a claim, so that Redis, PostgreSQL and this process each have jobs to work on at the same time.
_LOOKAHEAD_SECONDS: Final = 0.1
#: Maximum number of jobs fetched ahead, per slot.
_MAX_AHEAD: Final = 8
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

    The number of jobs to fetch ahead follows from the recent mean interval between releases.
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
        return min(int(_LOOKAHEAD_SECONDS / max(self._mean_interval, _MIN_INTERVAL)), _MAX_AHEAD * self.number)

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
