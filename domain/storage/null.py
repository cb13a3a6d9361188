"""A backend that keeps nothing and succeeds at once: for benchmarks of everything but storage."""

from collections.abc import Collection, Mapping
from uuid import UUID

from domain.storage.context import Grant
from domain.storage.driver import Capacity, Leftover, Usage
from domain.storage.urls import DriverUrl, require_no_place


class NullDriver:
    """Says yes. It knows no sizes and remembers no fences, so it cannot tell what was or what is late.

    Arguments that it has no use for (ARG002) are the protocol's.
    """

    def path(self, volume_id: UUID) -> None:
        """There are no bytes to find."""

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Claim to have made a volume of ``size`` bytes."""
        grant.check()
        grant.publishing("create", volume_id)
        return size

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Claim that the volume has ``size`` bytes."""
        grant.check()
        grant.publishing("expand", volume_id)
        return size

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Claim that the volume is gone."""
        grant.check()
        grant.publishing("delete", volume_id)

    async def seal(self, volume_id: UUID, grant: Grant) -> None:
        """Claim that the fence was raised; which size there is, nobody knows."""
        grant.publishing("seal", volume_id)

    async def take_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:  # noqa: ARG002
        """Claim to have kept the volume's bytes; how many, nobody knows."""
        grant.check()
        grant.publishing("take_snapshot", snapshot_id)

    async def restore_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:  # noqa: ARG002
        """Claim that the volume has the snapshot's bytes; how many, nobody knows."""
        grant.check()
        grant.publishing("restore_snapshot", volume_id)

    async def clone_snapshot(
        self,
        volume_id: UUID,  # noqa: ARG002
        snapshot_id: UUID,  # noqa: ARG002
        clone_id: UUID,
        size: int,
        grant: Grant,
    ) -> int:
        """Claim to have made a volume of ``size`` bytes."""
        grant.check()
        grant.publishing("clone_snapshot", clone_id)
        return size

    async def delete_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:  # noqa: ARG002
        """Claim that the snapshot is gone."""
        grant.check()
        grant.publishing("delete_snapshot", snapshot_id)

    async def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:  # noqa: ARG002
        """Claim that the snapshot's fence was raised."""
        grant.publishing("seal_snapshot", snapshot_id)

    async def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:  # noqa: ARG002
        """Know nothing."""
        return {}

    async def inventory(self, after: UUID | None, limit: int) -> None:
        """Keep nothing that could be listed."""

    async def stat(self, volume_id: UUID, snapshot_ids: Collection[UUID]) -> None:
        """Know nothing."""

    async def sweep(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Have nothing left behind."""

    async def capacity(self) -> Capacity:
        """Be endless and empty."""
        return Capacity(total=None, used=0)

    async def close(self) -> None:
        """Hold nothing that could be let go."""


def open_driver(url: DriverUrl, _: int) -> NullDriver:
    """Open ``null:``.

    Raises:
        ConfigurationError: a path was given.
    """
    require_no_place(url)
    return NullDriver()
