"""A backend that stores nothing and succeeds at once, for benchmarks of everything but storage."""

from collections.abc import Collection, Mapping
from uuid import UUID

from domain.storage.backends import DriverUrl
from domain.storage.context import Grant
from domain.storage.driver import Capacity, Leftover, StorageDriver, Taken, Usage
from domain.storage.filesystems import refuse_filesystem


class NullDriver(StorageDriver):
    """Succeeds without doing anything. It stores no sizes and no fences, so it cannot refuse a stale attempt."""

    def path(self, volume_id: UUID) -> None:
        """Return None: there are no bytes."""

    async def create(self, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        """Report a volume of ``size`` bytes as created."""
        refuse_filesystem(filesystem)
        _publish("create", volume_id, grant)
        return size

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Report the volume as grown to ``size`` bytes."""
        _publish("expand", volume_id, grant)
        return size

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Report the volume as deleted."""
        _publish("delete", volume_id, grant)

    async def seal(self, volume_id: UUID, grant: Grant) -> None:
        """Report the fence as raised; the size is unknown."""
        grant.on_published("seal", volume_id)

    async def take_snapshot(
        self,
        volume_id: UUID,
        snapshot_id: UUID,
        grant: Grant,
        *,
        allow_torn: bool = True,
    ) -> Taken:
        """Report the snapshot as taken; its size is unknown."""
        _publish("take_snapshot", snapshot_id, grant)
        return Taken(None, shared=True)

    async def restore_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Report the volume as restored; its size is unknown."""
        _publish("restore_snapshot", volume_id, grant)

    async def clone_snapshot(self, volume_id: UUID, snapshot_id: UUID, clone_id: UUID, size: int, grant: Grant) -> int:
        """Report a volume of ``size`` bytes as cloned."""
        _publish("clone_snapshot", clone_id, grant)
        return size

    async def delete_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Report the snapshot as deleted."""
        _publish("delete_snapshot", snapshot_id, grant)

    async def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Report the snapshot's fence as raised; its size is unknown."""
        grant.on_published("seal_snapshot", snapshot_id)

    async def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Return nothing: no volume can be measured."""
        return {}

    async def inventory(self, after: UUID | None, limit: int) -> None:
        """Return None: nothing is stored."""

    async def stat(self, volume_id: UUID, snapshot_ids: Collection[UUID]) -> None:
        """Return None: nothing is stored."""

    async def sweep(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Do nothing: there are no leftovers."""

    async def capacity(self) -> Capacity:
        """Return an empty backend without a limit."""
        return Capacity(total=None, used=0, free=None)

    async def close(self) -> None:
        """Do nothing: there are no threads or handles."""


def _publish(operation: str, subject_id: UUID, grant: Grant) -> None:
    grant.check()
    grant.on_published(operation, subject_id)


def open_driver(url: DriverUrl, _: int) -> NullDriver:
    """Open ``null:``.

    Raises:
        ConfigurationError: the URL has a path.
    """
    url.require_no_path()
    return NullDriver()
