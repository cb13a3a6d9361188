"""A backend in one process's memory, as strict about fences as the one on the disk: for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from domain.storage.driver import Capacity, Fence, Grant, StorageFull, Usage, VolumeMissing
from domain.storage.fence import refuse_stale


class MemoryDriver:
    """Keeps sizes, no bytes. No method awaits anything, so the event loop is its lock."""

    def __init__(self, capacity: int | None = None) -> None:
        self._limit = capacity
        self._sizes: dict[UUID, int] = {}
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
        """Forget the volume, not its fence."""
        with self._publishing("delete", volume_id, grant):
            self._sizes.pop(volume_id, None)

    async def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        """Raise the fence, whether or not the attempt was stopped; returns the size found."""
        refuse_stale(self._fences.get(volume_id), grant.fence)
        self._fences[volume_id] = grant.fence
        grant.published("seal", volume_id)
        return self._sizes.get(volume_id)

    async def measure(self, volume_id: UUID) -> Usage | None:
        """Report the size; nothing was ever written, so nothing is allocated."""
        size = self._sizes.get(volume_id)
        return None if size is None else Usage(size, used=0)

    async def capacity(self) -> Capacity:
        """Report the limit and the sum of all sizes, which is what the limit is held against."""
        return Capacity(self._limit, sum(self._sizes.values()))

    async def close(self) -> None:
        """Hold nothing that could be let go."""

    @contextmanager
    def _publishing(self, operation: str, volume_id: UUID, grant: Grant) -> Iterator[None]:
        refuse_stale(self._fences.get(volume_id), grant.fence)
        grant.check()
        self._fences[volume_id] = grant.fence
        yield
        grant.published(operation, volume_id)

    def _set_size(self, volume_id: UUID, size: int) -> None:
        others = sum(self._sizes.values()) - self._sizes.get(volume_id, 0)
        if self._limit is not None and others + size > self._limit:
            raise StorageFull
        self._sizes[volume_id] = size
