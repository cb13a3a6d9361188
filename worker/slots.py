"""The slots in which jobs are at work, and how many jobs are fetched ahead: none shall stand empty for a claim."""

import asyncio
from typing import Final

#: So long, about, a job may wait for its slot that was fetched ahead (seconds): not much longer than a claim takes.
_AHEAD_SECONDS: Final = 0.02
#: So long it waits before others may have it: those in the slots have turned out to be slow.
_PATIENCE_SECONDS: Final = 1.0
#: What jobs are taken to need as long as nothing is known of them (seconds).
_AT_FIRST: Final = 1.0
#: The weight of the last job in the mean of those before it.
_WEIGHT: Final = 1 / 16


class Slots:
    """So many jobs may be at work at once."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._free = asyncio.Semaphore(number)
        #: The mean of how long jobs have been at work lately.
        self._seconds = _AT_FIRST

    @property
    def ahead(self) -> int:
        """How many jobs will find a slot about at once, beyond those that have one; as many as these, at most."""
        return int(self.number * _AHEAD_SECONDS / max(self._seconds, _AHEAD_SECONDS))

    async def take(self) -> bool:
        """Wait for a slot. False: none came free."""
        if not self._free.locked():
            return await self._free.acquire()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._free.acquire()
        except TimeoutError:
            self._note(_PATIENCE_SECONDS)
            return False

    def give_back(self, *, after: float) -> None:
        """Leave a slot to the next job, ``after`` so many seconds of work."""
        self._note(after)
        self._free.release()

    def _note(self, seconds: float) -> None:
        self._seconds += (seconds - self._seconds) * _WEIGHT
