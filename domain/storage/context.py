"""The context of one attempt at storage work: its fence, its lease, and the grant that it works under."""

import enum
import time
from collections.abc import Callable
from typing import NamedTuple, Self
from uuid import UUID

from domain.errors import StorageError


class StopReason(enum.Enum):
    """Why a piece of storage work should end early."""

    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    LEASE_LOST = "lease-lost"


class Stopped(StorageError):
    """The work was told to stop before it published anything."""

    code = "stopped"

    def __init__(self, reason: StopReason) -> None:
        super().__init__(f"The work was stopped: {reason.value}.")
        self.reason = reason


class Fence(NamedTuple):
    """The order in which attempts may publish one volume or snapshot; compares like a tuple.

    ``version`` is that of what is published, raised by every operation that was accepted; ``rings`` is the
    job's, raised by every retry, rescue and interruption.
    """

    version: int
    epoch: int


class Lease:
    """How long an attempt may go on, and how far it is; one for all its parts.

    Shared between the event loop (which extends and stops it) and the storage threads (which look at it), so
    everything is a single read or write of a plain attribute.
    """

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.deadline = deadline
        self.stop_reason: StopReason | None = None
        self.progressed_at = clock()
        #: Whether the storage work is over: what has no more to do does not stand still, however long it is kept.
        self.over = False
        #: Whether nothing has moved for so long that the worker lets the lease run out.
        self.stalled = False
        #: Bytes copied so far, and in all; None for work that copies nothing.
        self.copied: tuple[int, int] | None = None

    def is_stalled(self, seconds: float) -> bool:
        """Tell whether there is work to do, and none was seen for so long."""
        return not self.over and self.clock() - self.progressed_at > seconds


class Grant:
    """Leave for one attempt to change one volume or snapshot, until it is stopped or its lease is over."""

    def __init__(
        self, job_id: UUID, fence: Fence, deadline: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make a grant whose lease ends at ``deadline``, in seconds of ``clock``."""
        self.job_id = job_id
        self.fence = fence
        self.lease = Lease(deadline, clock)
        #: Whether this is a part of an attempt, of which there are others at the same time.
        self.is_part = False

    @property
    def copied(self) -> int | None:
        """How many bytes the work copies in all; None if it copies nothing."""
        return None if self.lease.copied is None else self.lease.copied[1]

    def for_item(self, fence: Fence) -> Self:
        """Leave for one part of this attempt: the same lease and the same end, another fence."""
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)  # as `copy` does, which takes six times as long
        part.fence = fence
        part.is_part = True
        return part

    def extend(self, deadline: float) -> None:
        """Move the end of the lease; ``deadline`` in seconds of the grant's clock."""
        self.lease.deadline = deadline

    def stop(self, reason: StopReason) -> None:
        """Ask the work to end at its next check. The first reason stays."""
        self.lease.stop_reason = self.lease.stop_reason or reason

    def check(self) -> None:
        """Say that the work moves on; raise `Stopped` when it should not.

        Drivers call this between slices of long work, and once more under the lock right before they
        publish: after the lease's end by our own clock another worker may be at it already.
        """
        if self.lease.stop_reason is not None:
            raise Stopped(self.lease.stop_reason)
        now = self.lease.clock()
        if now >= self.lease.deadline:
            raise Stopped(StopReason.LEASE_LOST)
        self.lease.progressed_at = now

    def report(self, done: int, total: int) -> None:
        """Say how far the work is, in bytes, for whoever writes it down; moving on, too, as `check` does.

        How far one of many parts is says nothing of the whole.
        """
        if not self.is_part:
            self.lease.copied = (done, total)
        self.lease.progressed_at = self.lease.clock()

    def publishing(self, operation: str, subject_id: UUID) -> None:
        """Hear from the driver, still under the subject's lock, that the effect has just happened to it."""
