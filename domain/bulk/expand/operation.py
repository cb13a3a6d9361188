"""What lanes of a bulk expansion do with their volumes: measure them, decide, grow them."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.expand.policy import Policy, policy_from_json
from domain.bulk.ledger import ItemRef, ItemUpdate, Lane
from domain.bulk.operation import ItemWork, Result
from domain.bulk.states import ItemCode, ItemStatus, ending_of
from domain.db.database import Database
from domain.errors import CisternError
from domain.storage.backends import Backends
from domain.storage.context import Grant
from domain.storage.driver import Usage
from domain.volumes.repository import LockedVolume, Release, VolumeRepository
from domain.volumes.states import VolumeState


class ExpandOperation:
    """An `Operation`: each volume grows to the size that was written down for it."""

    state: Final = VolumeState.EXPANDING
    success_code: Final = ItemCode.EXPANDED

    def __init__(self, database: Database, backends: Backends) -> None:
        self._database = database
        self._backends = backends

    def lane_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Lanes decide by the policy."""
        return {"policy": params["policy"]}

    def measures(self, params: Mapping[str, Any]) -> bool:
        """A threshold is about what is in use; without one nobody asks."""
        return policy_from_json(params["policy"]).measures

    async def measure(self, items: Sequence[ItemRef]) -> dict[UUID, int]:
        """Measure how many bytes of each volume are allocated; what cannot be measured is left out."""
        async with self._database.transaction() as session:
            places = await VolumeRepository(session).backends_of([item.volume_id for item in items])
        measured = await asyncio.gather(*(self._measured(backend, places) for backend in set(places.values())))
        return {volume_id: usage.used for found in measured for volume_id, usage in found.items()}

    async def decide(
        self,
        session: AsyncSession,
        lane: Lane,
        volumes: Sequence[tuple[ItemRef, LockedVolume]],
        used: Mapping[UUID, int],
    ) -> list[ItemUpdate]:
        """Decide which volumes shall grow, and to which size."""
        policy = policy_from_json(lane.params["policy"])
        await VolumeRepository(session).record_usage(used)
        return [_decide_item(item, volume, policy, used.get(item.volume_id)) for item, volume in volumes]

    async def begin(
        self,
        _: AsyncSession,
        __: Lane,
        volumes: Sequence[tuple[ItemUpdate, LockedVolume]],
        newly_taken: Mapping[UUID, int],
    ) -> list[ItemWork]:
        """Write nothing down but the sizes, which the entries have."""
        return [
            ItemWork(
                entry, volume.backend, newly_taken.get(volume.id, volume.version), resumed=volume.id not in newly_taken
            )
            for entry, volume in volumes
        ]

    async def perform(self, task: ItemWork, grant: Grant) -> int:
        """Grow a volume on its backend."""
        if task.entry.to_size is None:
            raise RuntimeError(f"volume {task.volume_id} was taken without a size to grow to")
        return await self._backends.get(task.backend).expand(task.volume_id, task.entry.to_size, grant)

    async def seal(self, task: ItemWork, entry: ItemUpdate, grant: Grant) -> Result:
        """See how large the volume is, now that nobody can grow it any more."""
        return Result(entry, await self._backends.get(task.backend).seal(task.volume_id, grant))

    async def record(
        self, session: AsyncSession, lane: Lane, items: Sequence[ItemUpdate], sizes: Mapping[UUID, int | None]
    ) -> None:
        """The volumes have the sizes that their backends report."""
        endings = [Release(item.volume_id, lane.job_id, sizes[item.volume_id]) for item in items]
        await VolumeRepository(session).release(endings, VolumeState.AVAILABLE)

    async def raise_fences(self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef]) -> None:
        """It is the volumes that are published."""
        await VolumeRepository(session).raise_versions([item.volume_id for item in items], job_id)

    async def give_up(self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef]) -> None:
        """The volumes have the sizes that they had."""
        endings = [Release(item.volume_id, job_id, None) for item in items]
        await VolumeRepository(session).release(endings, VolumeState.AVAILABLE)

    async def _measured(self, backend: str, places: Mapping[UUID, str]) -> Mapping[UUID, Usage]:
        """Measure all that are on one backend, by one call."""
        try:
            here = [volume_id for volume_id, place in places.items() if place == backend]
            return await self._backends.get(backend).measure(here)
        except CisternError:
            return {}  # if it matters, growing the volumes will say why


def _decide_item(item: ItemRef, volume: LockedVolume, policy: Policy, used: int | None) -> ItemUpdate:
    """Decide about one volume, whose row is locked."""
    if item.to_size is None:
        wanted = policy.decide(volume.size, used, volume.autogrow)
    else:
        wanted = _binding(item.to_size, volume.size)
    if isinstance(wanted, ItemCode):
        return ItemUpdate(item.volume_id, ending_of(wanted), wanted, from_size=volume.size, used=used)
    return ItemUpdate(item.volume_id, ItemStatus.CLAIMED, from_size=volume.size, to_size=wanted, used=used)


def _binding(to_size: int, size: int) -> int | ItemCode:
    """A size that was written down before, by a job of which this one is the retry."""
    return to_size if to_size > size else ItemCode.ALREADY_THERE
