"""Keeps the lanes of a bulk job spread over the workers: who has a fair share of them passes the next one on.

A worker that polls just after many lanes have rung would take them all, while others have nothing to do.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from domain.bulk.ledger import Lane

#: Of so many lanes a worker remembers that it has passed them on; most never come back.
_MAX_REMEMBERED: Final = 100
_UNLIMITED: Final = sys.maxsize


class FairShare:
    """What one worker knows of lanes that it works on, and of those that it has passed on."""

    def __init__(self, workers: Callable[[], int]) -> None:
        """``workers`` tells how many there are."""
        self._workers = workers
        self._here: Counter[UUID] = Counter()
        self._yielded: dict[UUID, int] = {}

    @contextmanager
    def admit(self, lane: Lane) -> Iterator[bool]:
        """Count a lane among those at work here as long as the block lasts, and tell whether it should be."""
        self._here[lane.job_id] += 1
        try:
            yield self._here[lane.job_id] <= self._share(lane) or self._was_not_taken(lane)
        finally:
            self._here[lane.job_id] -= 1
            self._here += Counter()  # forgets the wholes of which nothing is left here

    def _share(self, lane: Lane) -> int:
        return _UNLIMITED if lane.lanes is None else math.ceil(lane.lanes / max(self._workers(), 1))

    def _was_not_taken(self, lane: Lane) -> bool:
        """Tell whether the lane was passed on before, and nobody else has taken it; if not, remember that it is now."""
        if self._yielded.pop(lane.lane_id, None) == lane.epoch - 1:
            return True
        self._yielded[lane.lane_id] = lane.epoch
        if len(self._yielded) > _MAX_REMEMBERED:
            del self._yielded[next(iter(self._yielded))]
        return False
