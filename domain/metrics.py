"""What a process counts of itself, for monitoring. Nothing, unless `CISTERN_METRICS` is set.

Like the log, the recorder belongs to the process and is reached from everywhere: `current()`. The one of a process
without metrics does nothing, and `domain.prometheus` with its library is not imported then. Code that would have to
prepare something asks `is_on` first. Label values come from small closed sets, and are never ids.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Final


class Recorder:
    """Records nothing."""

    is_on: ClassVar = False

    def jobs_accepted(self, kind: str, count: int = 1) -> None:
        """Jobs were accepted, and committed."""

    def jobs_claimed(self, waits: Iterable[tuple[str, float]]) -> None:
        """Jobs were claimed: for each its kind, and the seconds since it was due."""

    def attempt_settled(self, kind: str, seconds: float) -> None:
        """An attempt was settled, whatever its outcome: the seconds from the claim to the outcome."""

    def jobs_finished(self, kind: str, outcome: str, count: int = 1) -> None:
        """Jobs have ended; ``outcome`` is their last status."""

    def items_finished(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Items of bulk jobs were finished: their number by status and code."""

    def quota_refused(self, quota: str) -> None:
        """A limit of a project did not allow what was requested."""

    def storage_used(self, operation: str, result: str, seconds: float) -> None:
        """A backend has ended an operation."""

    def request_answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """The response to a request of HTTP has started."""


NOTHING: Final = Recorder()
_recorder = NOTHING


def current() -> Recorder:
    """Return the recorder of this process."""
    return _recorder


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Make this the recorder of the process while the block runs."""
    global _recorder  # noqa: PLW0603 (one per process, as the log)
    previous, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = previous
