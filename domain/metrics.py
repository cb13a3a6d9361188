"""What a process records about itself, for monitoring.

Like the log, the recorder belongs to the process: `current()` returns it everywhere. Without `CISTERN_METRICS` it does
nothing, and the library of Prometheus is not imported. Code that would have to prepare something checks `is_on` first.
Label values come from small closed sets, and are never ids.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Final


class Recorder:
    """Records nothing."""

    is_on: ClassVar = False

    def measure_lanes(self, running: Callable[[], int]) -> None:
        """Call ``running`` at each scrape for the number of lanes that this worker runs."""

    def jobs_accepted(self, kind: str, count: int = 1) -> None:
        """Record jobs that were accepted and committed."""

    def jobs_claimed(self, waits: Iterable[tuple[str, float]]) -> None:
        """Record claimed jobs: the kind of each, and the seconds from when it was due to its claim."""

    def attempt_settled(self, kind: str, seconds: float) -> None:
        """Record a settled attempt, whatever its outcome, with the seconds from its claim to its outcome."""

    def jobs_finished(self, kind: str, outcome: str, count: int = 1) -> None:
        """Record jobs that have ended; ``outcome`` is their last status."""

    def items_finished(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Record finished items of bulk jobs: their number by status and code."""

    def quota_refused(self, quota: str) -> None:
        """Record that a limit of a project refused a request or an item."""

    def storage_used(self, operation: str, result: str, seconds: float) -> None:
        """Record an operation of a storage driver, with its duration in seconds."""

    def freeze_ended(self, result: str) -> None:
        """Record a freeze that a worker has asked this node for: ``held`` all the time, or ``lost``."""

    def growth_failed(self) -> None:
        """Record a file system that could not be grown."""

    def request_answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record an HTTP request, with the seconds until its response started."""


NOTHING: Final = Recorder()
_recorder = NOTHING


def current() -> Recorder:
    """Return the recorder of this process."""
    return _recorder


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Use this recorder in this process while the block runs."""
    global _recorder  # noqa: PLW0603 (one per process, as the log)
    previous, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = previous
