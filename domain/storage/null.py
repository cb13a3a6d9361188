"""A backend that stores nothing and succeeds at once, for benchmarks of everything but storage."""

from collections.abc import Collection, Mapping
from uuid import UUID

from domain.storage.context import Grant
from domain.storage.driver import Capacity, Leftover, StorageDriver, Usage
from domain.storage.urls import DriverUrl, require_no_path


class NullDriver(StorageDriver):
    """Succeeds without doing anything. It stores no sizes and no fences, so it cannot refuse a stale attempt.

    The protocol requires the unused arguments (ARG002).
    """

    def path(self, volume_id: UUID) -> None:
        """Return None: there are no bytes."""

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Report a volume of ``size`` bytes as created."""
        grant.check()
        grant.on_published("create", volume_id)
        return size

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Report the volume as grown to ``size`` bytes."""
        grant.check()
        grant.on_published("expand", volume_id)
        return size

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Report the volume as deleted."""
        grant.check()
        grant.on_published("delete", volume_id)

    async def seal(self, volume_id: UUID, grant: Grant) -> None:
        """Report the fence as raised; the size is unknown."""
        grant.on_published("seal", volume_id)

    async def take_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:  # noqa: ARG002
        """Report the snapshot as taken; its size is unknown."""
        grant.check()
        grant.on_published("take_snapshot", snapshot_id)

    async def restore_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:  # noqa: ARG002
        """Report the volume as restored; its size is unknown."""
        grant.check()
        grant.on_published("restore_snapshot", volume_id)

    async def clone_snapshot(
        self,
        volume_id: UUID,  # noqa: ARG002
        snapshot_id: UUID,  # noqa: ARG002
        clone_id: UUID,
        size: int,
        grant: Grant,
    ) -> int:
        """Report a volume of ``size`` bytes as cloned."""
        grant.check()
        grant.on_published("clone_snapshot", clone_id)
        return size

    async def delete_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:  # noqa: ARG002
        """Report the snapshot as deleted."""
        grant.check()
        grant.on_published("delete_snapshot", snapshot_id)

    async def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:  # noqa: ARG002
        """Report the snapshot's fence as raised; its size is unknown."""
        grant.on_published("seal_snapshot", snapshot_id)

    async def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:  # noqa: ARG002
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
        return Capacity(total=None, used=0)

    async def close(self) -> None:
        """Do nothing: there are no threads or handles."""


def open_driver(url: DriverUrl, _: int) -> NullDriver:
    """Open ``null:``.

    Raises:
        ConfigurationError: the URL has a path.
    """
    require_no_path(url)
    return NullDriver()
