"""The context of one attempt at storage work: its fence, its lease, and the grant it works under."""

import enum
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Self
from uuid import UUID

from domain.errors import StorageError
from domain.storage.errors import FenceRefused


class StopReason(enum.Enum):
    """Why storage work should end early."""

    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    LEASE_LOST = "lease-lost"


class Stopped(StorageError):
    """The work was stopped before it published anything."""

    code = "stopped"

    def __init__(self, reason: StopReason) -> None:
        super().__init__(f"The work was stopped: {reason.value}.")
        self.reason = reason


#: No version or epoch is higher: it would take one operation each microsecond for eight years.
MAX_FENCE: Final = 2**48


class Fence(NamedTuple):
    """The order in which attempts may publish one volume or snapshot; compares like a tuple.

    ``version`` is the version of the volume or snapshot, raised by every accepted operation; ``epoch`` is the job's,
    raised whenever the job goes back to the queue.
    """

    version: int
    epoch: int


def refuse_stale(last: Fence | None, fence: Fence) -> None:
    """Refuse a fence lower than the highest one recorded; the same attempt, with an equal fence, may publish again.

    Raises:
        FenceRefused: an attempt with a higher fence has begun to publish, or has sealed.
    """
    if last is not None and fence < last:
        raise FenceRefused(f"Attempt {tuple(fence)} is stale: {tuple(last)} is already recorded.", stored=last)


class StallLimits(NamedTuple):
    """How many seconds storage work may go on without progress, and how many one blocking call may take."""

    seconds: float
    call_seconds: float


class BlockingCall:
    """A context manager around one system call that cannot report progress; its return counts as progress."""

    __slots__ = ("_state", "name", "started_at")

    def __init__(self, name: str, state: "AttemptState") -> None:
        self.name = name
        self.started_at = 0.0
        self._state = state

    def __enter__(self) -> None:
        self.started_at = self._state.clock()
        self._state.calls.add(self)

    def __exit__(self, *_: object) -> None:
        self._state.calls.discard(self)
        self._state.progressed_at = self._state.clock()

    @property
    def duration(self) -> float:
        """Seconds since the call began."""
        return self._state.clock() - self.started_at


class AttemptState:
    """The deadline, stop reason and progress of one attempt, shared by all its items.

    The event loop extends and stops it while storage threads read it, so every access is a single read or write of a
    plain attribute, or one atomic operation on a set.
    """

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.deadline = deadline
        self.stop_reason: StopReason | None = None
        self.progressed_at = clock()
        #: True once the storage work has ended. From then on the attempt cannot stall, however long it is kept.
        self.work_ended = False
        #: What `is_stalled` returned when the stall detector last asked. While True, this worker does not claim the job
        #: again. (Whether to renew the lease, the heartbeat asks `is_stalled` itself.)
        self.stalled_at_last_check = False
        #: Bytes copied so far, and in total; None for work that copies nothing.
        self.copied: tuple[int, int] | None = None
        #: The blocking calls that have not returned; several if the attempt works on several items.
        self.calls: set[BlockingCall] = set()

    def is_stalled(self, limits: StallLimits) -> bool:
        """Return whether unfinished work has made no progress for too long, and no slow call explains it."""
        return self._is_overdue(limits) and self.slow_call(limits) is None

    def slow_call(self, limits: StallLimits) -> BlockingCall | None:
        """Return the blocking call that overdue work still may wait for, the oldest of several; None if there is none.

        A call that cannot report progress looks like one that hangs, so it has a longer limit of its own.
        """
        if not self._is_overdue(limits):
            return None
        pending = [call for call in tuple(self.calls) if call.duration <= limits.call_seconds]
        return min(pending, key=lambda call: call.started_at, default=None)

    def _is_overdue(self, limits: StallLimits) -> bool:
        return not self.work_ended and self.clock() - self.progressed_at > limits.seconds


class Grant:
    """Permission for one attempt to change one volume or snapshot, until it is stopped or its lease ends."""

    def __init__(
        self, job_id: UUID, fence: Fence, deadline: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make a grant whose lease ends at ``deadline``, in seconds of ``clock``."""
        self.job_id = job_id
        self.fence = fence
        self.state = AttemptState(deadline, clock)
        #: True for one item of an attempt that works on several items at the same time.
        self.is_item = False

    @property
    def copied(self) -> int | None:
        """The total number of bytes that the work copies; None if it copies nothing."""
        return None if self.state.copied is None else self.state.copied[1]

    def for_item(self, fence: Fence) -> Self:
        """Return a grant for one item of this attempt: the same lease and deadline, another fence."""
        grant = object.__new__(type(self))
        grant.__dict__.update(self.__dict__)  # what `copy.copy` does, six times as fast
        grant.fence = fence
        grant.is_item = True
        return grant

    def extend(self, deadline: float) -> None:
        """Move the end of the lease; ``deadline`` in seconds of the grant's clock."""
        self.state.deadline = deadline

    def stop(self, reason: StopReason) -> None:
        """Ask the work to end at its next check. The first reason stays."""
        self.state.stop_reason = self.state.stop_reason or reason

    def check(self) -> None:
        """Record progress, or raise `Stopped` if the attempt must end.

        Drivers call this between slices of long work, and again under the lock right before they publish: once the
        lease has ended by this process's own clock, another worker may already have taken over.
        """
        if self.state.stop_reason is not None:
            raise Stopped(self.state.stop_reason)
        now = self.state.clock()
        if now >= self.state.deadline:
            raise Stopped(StopReason.LEASE_LOST)
        self.state.progressed_at = now

    def report(self, done: int, total: int) -> None:
        """Record that ``done`` of ``total`` bytes are copied; counts as progress, as `check` does.

        The byte counts of a single item are not recorded: they say nothing about the whole attempt.
        """
        if not self.is_item:
            self.state.copied = (done, total)
        self.state.progressed_at = self.state.clock()

    def blocking_call(self, name: str) -> AbstractContextManager[None]:
        """Return a context manager to put around one system call that may take long and cannot report progress.

        ``name`` is shown to users while the call is slow, as what the job waits for. Such a call may take
        ``CISTERN_BLOCKING_CALL_SECONDS`` before it counts as a stall.
        """
        return BlockingCall(name, self.state)

    def on_published(self, operation: str, subject_id: UUID) -> None:
        """Do nothing; a hook for tests. Drivers call it right after the effect, while they hold the subject's lock."""
