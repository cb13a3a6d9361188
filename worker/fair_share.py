"""Spreads the lanes of a bulk job over the workers: a worker that runs its share of them yields further ones.

Otherwise the worker that polls right after many lanes were dispatched would claim all of them, and others stay idle.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from domain.bulk.ledger import Lane

#: Maximum number of yielded lanes that a worker remembers; most of them never return to it.
_MAX_REMEMBERED: Final = 100
_UNLIMITED: Final = sys.maxsize


class FairShare:
    """The lanes that one worker runs, and those that it has yielded."""

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

    def _share(self, lane: Lane) -> int:
        return _UNLIMITED if lane.lanes is None else math.ceil(lane.lanes / max(self._count_workers(), 1))

    def _returned_at_once(self, lane: Lane) -> bool:
        """Return whether the lane came back at once: no other worker wants it. Otherwise record that it is yielded."""
        if self._yielded_epochs.pop(lane.job_id, None) == lane.epoch - 1:
            return True
        self._yielded_epochs[lane.job_id] = lane.epoch
        if len(self._yielded_epochs) > _MAX_REMEMBERED:
            del self._yielded_epochs[next(iter(self._yielded_epochs))]
        return False
