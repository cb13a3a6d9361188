"""What a storage backend must be able to do, under which permission, and how it may fail.

StorageError
├── TransientStorageError       worth another try later
│   └── StorageBusy             somebody holds the lock of the volume or snapshot; costs no attempt
├── PermanentStorageError       trying again will not help: StorageFull, SizeUnsupported, AccessDenied,
│                               VolumeMissing, SnapshotMissing
├── FenceRefused                a later attempt has already published; this one is history
└── Stopped                     the worker was told to stop, or its lease is over
"""

import enum
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self
from uuid import UUID

from domain.errors import StorageError


class TransientStorageError(StorageError):
    """The storage failed in a way that may pass."""

    code = "storage-unavailable"


class StorageBusy(TransientStorageError):
    """Another process holds the lock of this volume or snapshot."""

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


class SnapshotMissing(PermanentStorageError):
    """The snapshot's data is not on the backend."""

    code = "snapshot-missing"


class FenceRefused(StorageError):
    """A later attempt has already published on this volume or snapshot."""

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


@dataclass(frozen=True)
class StoredObject:
    """What a backend has of one volume or snapshot: its size in bytes, None if absent, and its last published fence."""

    size: int | None
    fence: Fence | None


@dataclass(frozen=True)
class Leftover:
    """A draft that was not published, or trash, of a volume or snapshot; ``path`` names it for a reader."""

    subject_id: UUID
    path: str
    trash: bool


@dataclass(frozen=True)
class StoredVolume:
    """What a backend has of a volume, of its snapshots, and what attempts on either have left behind."""

    volume: StoredObject
    snapshots: Mapping[UUID, StoredObject]
    leftovers: Sequence[Leftover] = ()


class StorageDriver(Protocol):
    """One storage backend.

    Every method that changes something may be repeated and may be overtaken. A repetition finds the work
    done and says so; an attempt with a lower fence than the last published one gets `FenceRefused`.
    A fence belongs to what is published: to the volume that is made, changed or restored, to the snapshot
    that is taken or deleted.
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

    async def take_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Keep the volume's bytes as they are now; never replaces a snapshot.

        Returns the snapshot's size in bytes, None where the backend knows no sizes.
        """

    async def restore_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Give the volume the snapshot's bytes; it keeps its present size, or grows to the snapshot's.

        What it had grown by since reads as zeros. There is no moment at which some bytes are old and some
        restored. Whoever has the volume open keeps the old bytes: open handles must be reopened after a
        restore. Until it has returned it may be done again, over what was written in between.
        Returns the size that the volume then has, None where the backend knows no sizes.
        """

    async def clone_snapshot(self, volume_id: UUID, snapshot_id: UUID, clone_id: UUID, size: int, grant: Grant) -> int:
        """Make a volume with the snapshot's bytes, then zeros up to ``size``; never replaces a volume.

        A snapshot of more than ``size`` bytes is cloned whole. Returns the new volume's size in bytes.
        """

    async def delete_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Remove the snapshot; its fence is remembered. Succeeds when there is none."""

    async def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Raise the snapshot's fence, as `seal` does for a volume; returns its size, None if absent."""

    async def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Report size and allocation in bytes of those of these volumes that are there and can be measured."""

    async def inventory(self, after: UUID | None, limit: int) -> Sequence[UUID] | None:
        """List up to ``limit`` volumes of which anything is kept, above ``after`` by id; None where nothing ever is.

        Whatever is on the backend is listed, whoever made it; a fence that is remembered does not count.
        """

    async def stat(self, volume_id: UUID, snapshot_ids: Collection[UUID]) -> StoredVolume | None:
        """Report on a volume and its snapshots without changing anything; None where nothing is ever kept.

        ``snapshot_ids`` are reported on even if they are absent.
        """

    async def sweep(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Remove what `look` found left behind; the caller knows that no attempt can publish it any more."""

    async def capacity(self) -> Capacity:
        """Report the backend's size and allocation in bytes."""

    async def close(self) -> None:
        """Let go of threads and handles, after the work that still runs in them has ended."""
