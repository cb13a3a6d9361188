"""The protocol of a storage driver, and the values it returns.

Drivers report failures with the errors of `domain.storage.errors`; the context of each attempt (grant, lease, fence) is
in `domain.storage.context`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol
from uuid import UUID

from domain.storage.context import Fence, Grant
from domain.storage.errors import VolumeMissing

#: No volume and no snapshot is larger, in bytes. A driver that reports another size than 1 to this is not believed.
MAX_STORED_SIZE: Final = 64 * 2**40


@dataclass(frozen=True)
class Usage:
    """The size of a volume on its backend in bytes, and how many of them hold data.

    ``used`` is None if the driver cannot tell. It must not count space that is only reserved: volumes grow by it.
    """

    size: int
    used: int | None


class Taken(NamedTuple):
    """A snapshot that was taken: its size in bytes, None if the backend stores no sizes, and what it is worth.

    ``shared``: it has the volume's bytes of one moment, however they were written meanwhile, as where blocks are
    shared. Otherwise they were copied one after the other.
    ``was_open``: another process had the volume open for writing; None if the driver cannot tell.
    ``was_frozen``: a node kept its file system from changing meanwhile. No driver knows that.
    """

    size: int | None
    shared: bool
    was_open: bool | None = None
    was_frozen: bool = False


@dataclass(frozen=True)
class Capacity:
    """How many bytes a backend can hold, how many are used, and how many can still be written (None: no limit)."""

    total: int | None
    used: int
    free: int | None = None


@dataclass(frozen=True)
class StoredObject:
    """One volume or snapshot as it is stored: size in bytes (None: absent), and the last published fence."""

    size: int | None
    fence: Fence | None


@dataclass(frozen=True)
class Leftover:
    """An unpublished draft, or trash, of a volume or snapshot; ``path`` is shown to the user."""

    subject_id: UUID
    path: str
    trash: bool


@dataclass(frozen=True)
class StoredVolume:
    """A volume and its snapshots as they are stored, and the leftovers of attempts on them."""

    volume: StoredObject
    snapshots: Mapping[UUID, StoredObject]
    leftovers: Sequence[Leftover] = ()


class StorageDriver(Protocol):
    """One storage backend.

    Every method that changes something may be repeated, and may be overtaken by a later attempt. A repetition finds the
    work done and succeeds; an attempt with a lower fence than the last published one raises `FenceRefused`.
    A fence belongs to what is published: the volume that is created, changed or restored, or the snapshot that is taken
    or deleted. A size that is returned is an int between 1 and `MAX_STORED_SIZE`; any other is an error of that volume.
    """

    #: Where the storage is, as shown to users, if it is a place that may be missing or be another one than expected,
    #: such as a mounted file system. Such a driver implements the next three methods, and refuses all work with
    #: `BackendUnavailable` unless the identity that it was told to `accept` is still there.
    place: str | None = None

    #: How many times its capacity a backend may promise to volumes, unless its URL has the option ``overcommit``.
    overcommit: float = 20.0

    #: The file systems that the driver can make in a volume, of `domain.storage.filesystems.FILESYSTEMS`.
    filesystems: Collection[str] = ()

    async def identity(self) -> str | None:
        """Return the identity that is stored at the place, None if there is none. Change nothing."""
        return None

    async def initialize(self, identity: str, expected: Collection[UUID] = ()) -> str:  # noqa: ARG002 (for others)
        """Store an identity at a place that has none, which is created if need be; return the one that is there.

        Raises:
            BackendUnavailable: it should have volumes, and has none of those ``expected``.
        """
        return identity

    async def accept(self, identity: str) -> None:
        """Work from now on, as long as this identity is at the place.

        Raises:
            BackendUnavailable: the place cannot be used.
        """
        _ = identity  # without a statement, mypy would demand this method of every driver

    def path(self, volume_id: UUID) -> str | None:
        """Return the path of the volume's bytes, None if the backend has no paths."""

    async def create(self, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        """Create a volume of ``size`` bytes, empty or with an empty file system; never replace one.

        The UUID of the file system is the volume's id. Return the volume's size in bytes.

        Raises:
            FilesystemFailed: the file system cannot be made, or not in so few bytes.
        """

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Grow to ``size`` bytes, keeping the content; never shrink. Return the new size in bytes."""

    async def grow_filesystem(self, volume_id: UUID, filesystem: str, grant: Grant) -> None:
        """Grow a file system that is not mounted to the size of its volume, unless it is of a kind that grows mounted.

        Here nothing is done, for drivers that make no file systems.

        Raises:
            FilesystemFailed: it cannot be grown, for the reason in the message.
            VolumeInUse: another process has the volume open; nothing was changed.
        """
        _ = volume_id, filesystem, grant

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Delete the volume but keep its fence. Succeed if the volume is absent.

        Raises:
            VolumeInUse: another process has it open, as far as the driver can tell; nothing was changed.
        """

    async def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        """Raise the fence to this grant's and change nothing else; return the size in bytes, None if absent.

        From then on no earlier attempt can publish, so the size returned cannot change. Ignore the grant's stop flag
        and deadline: sealing is how a stopped attempt is brought to an end.
        """

    async def isolate(self, volume_id: UUID, grant: Grant) -> int:
        """Cut off the processes that have the volume open: what they write from now on never reaches it.

        For a node that is lost and may come back. Return the size in bytes. A driver that knows who may write to a
        volume needs no more than to raise the fence, as here.

        Raises:
            VolumeMissing: there is no such volume.
        """
        size = await self.seal(volume_id, grant)
        if size is None:
            raise VolumeMissing
        return size

    async def take_snapshot(
        self, volume_id: UUID, snapshot_id: UUID, grant: Grant, *, allow_torn: bool = True
    ) -> Taken:
        """Keep the volume's bytes as they are now; never replace a snapshot.

        Raises:
            SnapshotTorn: ``allow_torn`` is false, the bytes of one moment cannot be kept, and a process writes.
        """

    async def restore_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Replace the volume's bytes by the snapshot's; the volume keeps its size, or grows to the snapshot's.

        Bytes beyond the snapshot's size read as zeros. The replacement is atomic: a reader never sees a mix of old and
        restored bytes. Handles that are open keep the old bytes and must be reopened after a restore. Until it has
        returned, a restore may be repeated, and then discards what was written in between.
        Return the volume's new size in bytes, None if the backend stores no sizes.

        Raises:
            VolumeInUse: another process has it open, as far as the driver can tell; nothing was changed.
        """

    async def clone_snapshot(self, volume_id: UUID, snapshot_id: UUID, clone_id: UUID, size: int, grant: Grant) -> int:
        """Create a volume with the snapshot's bytes, followed by zeros up to ``size``; never replace a volume.

        A snapshot of more than ``size`` bytes is cloned in full. Return the new volume's size in bytes.
        """

    async def delete_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Delete the snapshot but keep its fence. Succeed if the snapshot is absent."""

    async def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Raise the snapshot's fence, as `seal` does for a volume; return its size, None if absent."""

    async def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Return size and use in bytes; volumes that are absent or cannot be measured are left out."""

    async def inventory(self, after: UUID | None, limit: int) -> Sequence[UUID] | None:
        """Return up to ``limit`` stored volumes with ids above ``after``, ascending; None if the driver stores nothing.

        A volume is listed if it has data, snapshots or leftovers, whatever created them; a fence alone does not count.
        """

    async def stat(self, volume_id: UUID, snapshot_ids: Collection[UUID]) -> StoredVolume | None:
        """Return a volume and its snapshots as they are stored; None if the driver stores nothing. Change nothing.

        The result includes all of ``snapshot_ids``, also those that are absent.
        """

    async def sweep(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Remove leftovers that `stat` reported. The caller guarantees that no attempt can still publish them."""

    async def old_fences(self, days: int) -> Sequence[UUID]:  # noqa: ARG002 (for others)
        """Return the volumes and snapshots whose fence was last raised more than ``days`` days ago."""
        return []

    async def forget(self, subject_ids: Collection[UUID]) -> None:
        """Remove the fences of volumes and snapshots that are gone for good."""
        _ = subject_ids  # without a statement, mypy would demand this method of every driver

    async def capacity(self) -> Capacity:
        """Return the backend's capacity and allocation in bytes."""

    async def close(self) -> None:
        """Release threads and handles, after the work that is still running has ended."""
