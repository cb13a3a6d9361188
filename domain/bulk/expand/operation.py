"""The `BulkOperation` of bulk expansion: measure volumes, decide by a policy, expand them."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.expand.policy import BulkExpandRequest, Policy, policy_from_json
from domain.bulk.ledger import ItemRef, ItemUpdate, Lane
from domain.bulk.operation import ItemWork, Result
from domain.bulk.states import ItemCode, ItemStatus, unchanged_status
from domain.db.database import Database
from domain.errors import CisternError
from domain.operations import VolumeState
from domain.storage.backends import Backends
from domain.storage.context import Grant
from domain.storage.driver import Usage
from domain.volumes.model import LockedVolume
from domain.volumes.repository import Release, VolumeRepository


class ExpandOperation:
    """Expands each volume to the size stored in its item."""

    request_type: Final = BulkExpandRequest
    state: Final = VolumeState.EXPANDING
    success_code: Final = ItemCode.EXPANDED

    def __init__(self, database: Database, backends: Backends) -> None:
        self._database = database
        self._backends = backends

    def lane_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the policy, by which lanes decide."""
        return {"policy": params["policy"]}

    def measures(self, params: Mapping[str, Any]) -> bool:
        """Return whether the policy has a usage threshold."""
        return policy_from_json(params["policy"]).measures

    async def measure(self, items: Sequence[ItemRef]) -> dict[UUID, int]:
        """Return the allocated bytes of volumes by id; volumes that cannot be measured are left out."""
        async with self._database.transaction() as session:
            backends = await VolumeRepository(session).backends_of([item.volume_id for item in items])
        usages = await asyncio.gather(*(self._measure_on(backend, backends) for backend in set(backends.values())))
        return {volume_id: usage.used for by_volume in usages for volume_id, usage in by_volume.items()}

    async def decide_available(
        self,
        session: AsyncSession,
        lane: Lane,
        volumes: Sequence[tuple[ItemRef, LockedVolume]],
        used: Mapping[UUID, int],
    ) -> list[ItemUpdate]:
        """Store the measured usage; decide by the policy which volumes to expand, and to which size."""
        policy = policy_from_json(lane.params["policy"])
        await VolumeRepository(session).record_usage(used)
        return [_decide_one(item, volume, policy, used.get(item.volume_id)) for item, volume in volumes]

    async def prepare(
        self,
        _: AsyncSession,
        __: Lane,
        volumes: Sequence[tuple[ItemUpdate, LockedVolume]],
        newly_acquired: Mapping[UUID, int],
    ) -> list[ItemWork]:
        """Return the work; there is nothing to write down, since the updates already have the sizes."""
        return [
            ItemWork(
                update,
                volume.backend,
                newly_acquired.get(volume.id, volume.version),
                resumed=volume.id not in newly_acquired,
            )
            for update, volume in volumes
        ]

    async def perform(self, work: ItemWork, grant: Grant) -> int:
        """Expand the volume on its backend."""
        if work.update.to_size is None:
            raise RuntimeError(f"volume {work.volume_id} was acquired without a target size")
        return await self._backends.get(work.backend).expand(work.volume_id, work.update.to_size, grant)

    async def seal(self, work: ItemWork, update: ItemUpdate, grant: Grant) -> Result:
        """Seal the volume and return the size found on the backend."""
        return Result(update, await self._backends.get(work.backend).seal(work.volume_id, grant))

    async def record(
        self, session: AsyncSession, lane: Lane, items: Sequence[ItemUpdate], sizes: Mapping[UUID, int | None]
    ) -> None:
        """Store the sizes reported by the backend and release the volumes."""
        releases = [Release(item.volume_id, lane.parent_id, sizes[item.volume_id]) for item in items]
        await VolumeRepository(session).release(releases, VolumeState.AVAILABLE)

    async def raise_fences(self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef]) -> None:
        """Increment the versions of the volumes, which are what an expansion publishes."""
        await VolumeRepository(session).raise_versions([item.volume_id for item in items], job_id)

    async def give_up(self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef]) -> None:
        """Release the volumes with their sizes unchanged."""
        releases = [Release(item.volume_id, job_id, None) for item in items]
        await VolumeRepository(session).release(releases, VolumeState.AVAILABLE)

    async def _measure_on(self, backend: str, backends: Mapping[UUID, str]) -> Mapping[UUID, Usage]:
        """Measure all volumes that are on one backend, in one call."""
        try:
            return await self._backends.get(backend).measure([id_ for id_, name in backends.items() if name == backend])
        except CisternError:
            return {}  # the items end as usage-unknown, or fail with the reason when their volumes are expanded


def _decide_one(item: ItemRef, volume: LockedVolume, policy: Policy, used: int | None) -> ItemUpdate:
    """Decide about one item: by the size stored in it, if this is a retry, else by the policy."""
    if item.to_size is None:
        decision = policy.new_size(volume.size, used, volume.autogrow)
    else:
        decision = _stored_size(item.to_size, volume.size)
    if isinstance(decision, ItemCode):
        return ItemUpdate(item.volume_id, unchanged_status(decision), decision, from_size=volume.size, used=used)
    return ItemUpdate(item.volume_id, ItemStatus.CLAIMED, from_size=volume.size, to_size=decision, used=used)


def _stored_size(to_size: int, size: int) -> int | ItemCode:
    """Return the size that the retried job stored in the item, unless the volume has reached it."""
    return to_size if to_size > size else ItemCode.ALREADY_LARGE_ENOUGH
