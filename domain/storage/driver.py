"""What a storage backend must be able to do, under which permission, and how it may fail.

StorageError
├── TransientStorageError       worth another try later
│   └── StorageBusy             somebody holds the lock of the volume or snapshot; costs no attempt
├── PermanentStorageError       trying again will not help: StorageFull, SizeUnsupported, AccessDenied,
│                               VolumeMissing, SnapshotMissing
├── FenceRefused                a later attempt has already published; this one is history
└── Stopped                     the worker was told to stop, or its lease is over
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from domain.storage.context import Fence, Grant


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
