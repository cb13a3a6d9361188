"""What a storage backend must be able to do, under which permission, and how it may fail.

StorageError
├── TransientStorageError       worth another try later
│   └── StorageBusy             somebody holds the volume's lock; costs no attempt
├── PermanentStorageError       trying again will not help: StorageFull, SizeUnsupported, AccessDenied, VolumeMissing
├── FenceRefused                a later attempt has already published; this one is history
└── Stopped                     the worker was told to stop, or its lease is over
"""

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from uuid import UUID

from domain.errors import StorageError


class TransientStorageError(StorageError):
    """The storage failed in a way that may pass."""

    code = "storage-unavailable"


class StorageBusy(TransientStorageError):
    """Another process holds this volume's lock."""

    code = "storage-busy"


class PermanentStorageError(StorageError):
    """The storage refused, and will refuse again."""

    code = "storage-refused"


class StorageFull(PermanentStorageError):
    """There is no room left on the backend."""

    code = "storage-full"


class SizeUnsupported(PermanentStorageError):
    """The backend cannot hold a volume of this size."""

    code = "size-unsupported"


class AccessDenied(PermanentStorageError):
    """The backend may not be written to."""

    code = "storage-denied"


class VolumeMissing(PermanentStorageError):
    """The volume's data is not on the backend."""

    code = "volume-missing"


class FenceRefused(StorageError):
    """A later attempt has already published on this volume."""

    code = "fence-refused"


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
    """The order in which attempts on one volume may publish; compares like a tuple.

    ``version`` is the volume's, raised by every operation that was accepted; ``rings`` is the job's,
    raised by every retry, rescue and interruption.
    """

    version: int
    rings: int


class Grant:
    """Leave for one attempt to change one volume, until it is stopped or its lease is over.

    Shared between the event loop (which extends and stops it) and the storage thread (which checks it),
    so every method is a single read or write of plain attributes.
    """

    def __init__(
        self, job_id: UUID, fence: Fence, deadline: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make a grant that ends at ``deadline``, in seconds of ``clock``."""
        self.job_id = job_id
        self.fence = fence
        self.deadline = deadline
        self.stop_reason: StopReason | None = None
        self._clock = clock
        self.progressed_at = clock()

    def extend(self, deadline: float) -> None:
        """Move the end of the lease; ``deadline`` in seconds of the grant's clock."""
        self.deadline = deadline

    def stop(self, reason: StopReason) -> None:
        """Ask the work to end at its next check. The first reason stays."""
        self.stop_reason = self.stop_reason or reason

    def check(self) -> None:
        """Say that the work moves on; raise `Stopped` when it should not.

        Drivers call this between slices of long work, and once more under the volume's lock right before
        they publish: after the lease's end by our own clock another worker may be at it already.
        """
        if self.stop_reason is not None:
            raise Stopped(self.stop_reason)
        now = self._clock()
        if now >= self.deadline:
            raise Stopped(StopReason.LEASE_LOST)
        self.progressed_at = now

    def published(self, operation: str, volume_id: UUID) -> None:
        """Hear from the driver, still under the volume's lock, that the effect has just happened."""


@dataclass(frozen=True)
class Usage:
    """How large a volume is on its backend, and how many bytes of it are really allocated."""

    size: int
    used: int


@dataclass(frozen=True)
class Capacity:
    """How many bytes a backend can hold in all, and how many are taken; None where there is no limit."""

    total: int | None
    used: int


class StorageDriver(Protocol):
    """One storage backend.

    Every method that changes something may be repeated and may be overtaken. A repetition finds the work
    done and says so; an attempt with a lower fence than the last published one gets `FenceRefused`.
    """

    def path(self, volume_id: UUID) -> str | None:
        """Where a user finds the volume's bytes, or None when this backend has no such place."""

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Make an empty volume of ``size`` bytes; never replaces one. Returns its size in bytes."""

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Grow to ``size`` bytes, keeping the content; never shrinks. Returns the size it then has."""

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Remove the volume; its fence is remembered. Succeeds when there is none."""

    async def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        """Raise the fence to this grant's, changing nothing else; returns the size in bytes, None if absent.

        After this no earlier attempt can publish any more, so what was found stays true. Does not look at
        the grant's stop flag: it is how a stopped attempt is brought to an end.
        """

    async def measure(self, volume_id: UUID) -> Usage | None:
        """Report the volume's size and allocation in bytes; None if it is absent."""

    async def capacity(self) -> Capacity:
        """Report the backend's size and allocation in bytes."""

    async def close(self) -> None:
        """Let go of threads and handles, after the work that still runs in them has ended."""
