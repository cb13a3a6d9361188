"""A backend in one process's memory, as strict about fences as the one on the disk: for tests."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from uuid import UUID

from pydantic import ByteSize, TypeAdapter, ValidationError

from domain.errors import ConfigurationError
from domain.storage.context import Fence, Grant
from domain.storage.driver import Capacity, Leftover, StoredObject, StoredVolume, Usage
from domain.storage.errors import SnapshotMissing, StorageFull, VolumeMissing
from domain.storage.file.fence import refuse_stale
from domain.storage.urls import DriverUrl, require_no_place


class MemoryDriver:
    """Keeps sizes, no bytes. No method awaits anything, so the event loop is its lock."""

    def __init__(self, capacity: int | None = None) -> None:
        self._limit = capacity
        self._sizes: dict[UUID, int] = {}
        self._snapshots: dict[tuple[UUID, UUID], int] = {}
        self._fences: dict[UUID, Fence] = {}

    def path(self, volume_id: UUID) -> None:
        """There is no place that a user could look at."""

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Take note of a volume; never replaces one."""
        with self._publishing("create", volume_id, grant):
            if volume_id not in self._sizes:
                self._set_size(volume_id, size)
            return self._sizes[volume_id]

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Raise the volume's size; never lowers it."""
        with self._publishing("expand", volume_id, grant):
            if volume_id not in self._sizes:
                raise VolumeMissing
            self._set_size(volume_id, max(size, self._sizes[volume_id]))
            return self._sizes[volume_id]

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Forget the volume and its snapshots, not their fences."""
        with self._publishing("delete", volume_id, grant):
            self._sizes.pop(volume_id, None)
            self._snapshots = {key: size for key, size in self._snapshots.items() if key[0] != volume_id}

    async def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        """Raise the fence, whether or not the attempt was stopped; returns the size found."""
        self._seal("seal", volume_id, grant)
        return self._sizes.get(volume_id)

    async def take_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Take note of the volume's size; never replaces a snapshot."""
        self._refuse_if_stale(snapshot_id, grant)
        key = volume_id, snapshot_id
        if key not in self._snapshots and volume_id not in self._sizes:
            raise VolumeMissing
        with self._publishing("take_snapshot", snapshot_id, grant):
            return self._snapshots.setdefault(key, self._sizes.get(volume_id, 0))

    async def restore_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Raise the volume's size to the snapshot's; never lowers it."""
        self._refuse_if_stale(volume_id, grant)
        size = self._snapshot(volume_id, snapshot_id)
        with self._publishing("restore_snapshot", volume_id, grant):
            self._set_size(volume_id, max(size, self._sizes[volume_id]))
            return self._sizes[volume_id]

    async def clone_snapshot(self, volume_id: UUID, snapshot_id: UUID, clone_id: UUID, size: int, grant: Grant) -> int:
        """Take note of a volume at least as large as the snapshot; never replaces one."""
        self._refuse_if_stale(clone_id, grant)
        if clone_id not in self._sizes:
            size = max(size, self._snapshot(volume_id, snapshot_id))
        with self._publishing("clone_snapshot", clone_id, grant):
            if clone_id not in self._sizes:
                self._set_size(clone_id, size)
            return self._sizes[clone_id]

    async def delete_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Forget the snapshot, not its fence."""
        with self._publishing("delete_snapshot", snapshot_id, grant):
            self._snapshots.pop((volume_id, snapshot_id), None)

    async def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Raise the snapshot's fence, whether or not the attempt was stopped; returns the size found."""
        self._seal("seal_snapshot", snapshot_id, grant)
        return self._snapshots.get((volume_id, snapshot_id))

    async def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Report the sizes; nothing was ever written, so nothing is allocated."""
        return {one: Usage(self._sizes[one], used=0) for one in volume_ids if one in self._sizes}

    async def inventory(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """List the volumes, and those of which only snapshots are there."""
        kept = {*self._sizes, *(volume_id for volume_id, _ in self._snapshots)}
        return sorted(volume_id for volume_id in kept if after is None or volume_id > after)[:limit]

    async def stat(self, volume_id: UUID, snapshot_ids: Collection[UUID]) -> StoredVolume:
        """Report sizes and fences; nothing is ever left behind."""
        own = {*snapshot_ids, *(one for of_volume, one in self._snapshots if of_volume == volume_id)}
        sizes = {one: self._snapshots.get((volume_id, one)) for one in own}
        volume = StoredObject(self._sizes.get(volume_id), self._fences.get(volume_id))
        return StoredVolume(volume, {one: StoredObject(size, self._fences.get(one)) for one, size in sizes.items()})

    async def sweep(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Have nothing left behind."""

    async def capacity(self) -> Capacity:
        """Report the limit and the sum of all volumes' sizes, which is what the limit is held against.

        Snapshots take no room, as they share what they were taken of.
        """
        return Capacity(self._limit, sum(self._sizes.values()))

    async def close(self) -> None:
        """Hold nothing that could be let go."""

    def _refuse_if_stale(self, subject_id: UUID, grant: Grant) -> None:
        grant.check()
        refuse_stale(self._fences.get(subject_id), grant.fence)

    @contextmanager
    def _publishing(self, operation: str, subject_id: UUID, grant: Grant) -> Iterator[None]:
        self._refuse_if_stale(subject_id, grant)
        self._fences[subject_id] = grant.fence
        yield
        grant.publishing(operation, subject_id)

    def _seal(self, operation: str, subject_id: UUID, grant: Grant) -> None:
        refuse_stale(self._fences.get(subject_id), grant.fence)
        self._fences[subject_id] = grant.fence
        grant.publishing(operation, subject_id)

    def _snapshot(self, volume_id: UUID, snapshot_id: UUID) -> int:
        if (volume_id, snapshot_id) not in self._snapshots:
            raise SnapshotMissing
        return self._snapshots[volume_id, snapshot_id]

    def _set_size(self, volume_id: UUID, size: int) -> None:
        others = sum(self._sizes.values()) - self._sizes.get(volume_id, 0)
        if self._limit is not None and others + size > self._limit:
            raise StorageFull
        self._sizes[volume_id] = size


def open_driver(url: DriverUrl, _: int) -> MemoryDriver:
    """Open ``memory:``, or ``memory:?capacity=10MiB``.

    Raises:
        ConfigurationError: a path was given, or the capacity is not a size.
    """
    require_no_place(url)
    return MemoryDriver(_capacity(url.options.pop("capacity", None)))


def _capacity(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return TypeAdapter(ByteSize).validate_python(text)
    except ValidationError as error:
        raise ConfigurationError(f"capacity={text!r} is no size, such as 10MiB") from error
