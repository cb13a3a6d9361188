"""A backend in the memory of one process, for tests; as strict about fences as the file driver."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from uuid import UUID

from pydantic import ByteSize, TypeAdapter, ValidationError

from domain.errors import ConfigurationError
from domain.storage.backends import DriverUrl
from domain.storage.context import Fence, Grant, refuse_stale
from domain.storage.driver import Capacity, Leftover, StorageDriver, StoredObject, StoredVolume, Taken, Usage
from domain.storage.errors import SnapshotMissing, StorageFull, VolumeMissing
from domain.storage.filesystems import refuse_filesystem


class MemoryDriver(StorageDriver):
    """Stores sizes, no bytes. No method awaits anything, so the event loop serves as its lock."""

    def __init__(self, capacity: int | None = None) -> None:
        self._limit = capacity
        self._sizes: dict[UUID, int] = {}
        self._snapshots: dict[tuple[UUID, UUID], int] = {}
        self._fences: dict[UUID, Fence] = {}

    def path(self, volume_id: UUID) -> None:
        """Return None: there are no files."""

    async def create(self, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        """Store the size of a new volume; never replace one."""
        refuse_filesystem(filesystem)
        with self._publishing("create", volume_id, grant):
            if volume_id not in self._sizes:
                self._set_size(volume_id, size)
            return self._sizes[volume_id]

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Raise the volume's size; never lower it."""
        with self._publishing("expand", volume_id, grant):
            if volume_id not in self._sizes:
                raise VolumeMissing
            self._set_size(volume_id, max(size, self._sizes[volume_id]))
            return self._sizes[volume_id]

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Remove the volume and its snapshots, but keep their fences."""
        with self._publishing("delete", volume_id, grant):
            self._sizes.pop(volume_id, None)
            self._snapshots = {key: size for key, size in self._snapshots.items() if key[0] != volume_id}

    async def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        """Raise the fence, even if the attempt was stopped; return the volume's size."""
        with self._publishing("seal", volume_id, grant, seal=True):
            return self._sizes.get(volume_id)

    async def take_snapshot(
        self,
        volume_id: UUID,
        snapshot_id: UUID,
        grant: Grant,
        *,
        allow_torn: bool = True,  # noqa: ARG002
    ) -> Taken:
        """Store the volume's size as the snapshot's; never replace a snapshot."""
        self._refuse_if_stale(snapshot_id, grant)
        key = volume_id, snapshot_id
        if key not in self._snapshots and volume_id not in self._sizes:
            raise VolumeMissing
        with self._publishing("take_snapshot", snapshot_id, grant):
            return Taken(self._snapshots.setdefault(key, self._sizes.get(volume_id, 0)), shared=True)

    async def restore_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Raise the volume's size to the snapshot's; never lower it."""
        self._refuse_if_stale(volume_id, grant)
        size = self._snapshot(volume_id, snapshot_id)
        with self._publishing("restore_snapshot", volume_id, grant):
            self._set_size(volume_id, max(size, self._sizes[volume_id]))
            return self._sizes[volume_id]

    async def clone_snapshot(self, volume_id: UUID, snapshot_id: UUID, clone_id: UUID, size: int, grant: Grant) -> int:
        """Store the size of a new volume at least as large as the snapshot; never replace one."""
        self._refuse_if_stale(clone_id, grant)
        if clone_id not in self._sizes:
            size = max(size, self._snapshot(volume_id, snapshot_id))
        with self._publishing("clone_snapshot", clone_id, grant):
            if clone_id not in self._sizes:
                self._set_size(clone_id, size)
            return self._sizes[clone_id]

    async def delete_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Remove the snapshot, but keep its fence."""
        with self._publishing("delete_snapshot", snapshot_id, grant):
            self._snapshots.pop((volume_id, snapshot_id), None)

    async def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Raise the snapshot's fence, even if the attempt was stopped; return the snapshot's size."""
        with self._publishing("seal_snapshot", snapshot_id, grant, seal=True):
            return self._snapshots.get((volume_id, snapshot_id))

    async def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Return the sizes; no bytes are ever written, so none are allocated."""
        return {id_: Usage(self._sizes[id_], used=0) for id_ in volume_ids if id_ in self._sizes}

    async def inventory(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """List the volumes, including those of which only snapshots are left."""
        stored = {*self._sizes, *(volume_id for volume_id, _ in self._snapshots)}
        return sorted(volume_id for volume_id in stored if after is None or volume_id > after)[:limit]

    async def stat(self, volume_id: UUID, snapshot_ids: Collection[UUID]) -> StoredVolume:
        """Return sizes and fences; there are never any leftovers."""
        ids = {*snapshot_ids, *(id_ for owner, id_ in self._snapshots if owner == volume_id)}
        snapshots = {id_: StoredObject(self._snapshots.get((volume_id, id_)), self._fences.get(id_)) for id_ in ids}
        return StoredVolume(StoredObject(self._sizes.get(volume_id), self._fences.get(volume_id)), snapshots)

    async def sweep(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Do nothing: there are no leftovers."""

    async def capacity(self) -> Capacity:
        """Return the limit and the sum of all volumes' sizes, which must not exceed it.

        Snapshots use no space: they share the bytes of their volume.
        """
        used = sum(self._sizes.values())
        return Capacity(self._limit, used, None if self._limit is None else self._limit - used)

    async def close(self) -> None:
        """Do nothing: there are no threads or handles."""

    def _refuse_if_stale(self, subject_id: UUID, grant: Grant) -> None:
        grant.check()
        refuse_stale(self._fences.get(subject_id), grant.fence)

    @contextmanager
    def _publishing(self, operation: str, subject_id: UUID, grant: Grant, *, seal: bool = False) -> Iterator[None]:
        if not seal:
            grant.check()
        refuse_stale(self._fences.get(subject_id), grant.fence)
        self._fences[subject_id] = grant.fence
        yield
        grant.on_published(operation, subject_id)

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
        ConfigurationError: the URL has a path, or the capacity is not a size.
    """
    url.require_no_path()
    capacity = url.options.pop("capacity", None)
    try:
        return MemoryDriver(TypeAdapter[ByteSize | None](ByteSize | None).validate_python(capacity))
    except ValidationError as error:
        raise ConfigurationError(f"capacity={capacity!r} is not a size such as 10MiB") from error
