"""A backend that keeps nothing and succeeds at once: for benchmarks of everything but storage."""

from uuid import UUID

from domain.storage.driver import Capacity, Grant, Usage


class NullDriver:
    """Says yes. It knows no sizes and remembers no fences, so it cannot tell what was or what is late."""

    def path(self, volume_id: UUID) -> None:
        """There are no bytes to find."""

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Claim to have made a volume of ``size`` bytes."""
        grant.check()
        grant.published("create", volume_id)
        return size

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Claim that the volume has ``size`` bytes."""
        grant.check()
        grant.published("expand", volume_id)
        return size

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Claim that the volume is gone."""
        grant.check()
        grant.published("delete", volume_id)

    async def seal(self, volume_id: UUID, grant: Grant) -> None:
        """Claim that the fence was raised; which size there is, nobody knows."""
        grant.published("seal", volume_id)

    async def measure(self, volume_id: UUID) -> Usage | None:  # noqa: ARG002 - the protocol's signature
        """Know nothing."""
        return None

    async def capacity(self) -> Capacity:
        """Be endless and empty."""
        return Capacity(total=None, used=0)

    async def close(self) -> None:
        """Hold nothing that could be let go."""
