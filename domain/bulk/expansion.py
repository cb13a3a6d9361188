"""The work of a bulk expansion: measure volumes, decide their sizes by the policy, and expand them."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.expand import BulkExpandRequest, Policy, policy_from_json, why_unknown
from domain.bulk.model import ItemCode, ItemRef, ItemStatus, ItemUpdate, Lane
from domain.bulk.operation import BulkOperation, ItemWork, Result, release_volumes
from domain.db.database import Database
from domain.errors import CisternError
from domain.operations import VolumeState
from domain.storage.backends import Backends
from domain.storage.context import Grant
from domain.storage.driver import Usage
from domain.storage.errors import BackendUnavailable
from domain.storage.growing import grow
from domain.volumes.filesystems.growth import grown_offline
from domain.volumes.filesystems.repository import usage_of
from domain.volumes.filesystems.usage import VolumeUsage
from domain.volumes.model import VolumeRow
from domain.volumes.repository import VolumeRepository


class ExpandOperation(BulkOperation):
    """Expands each volume to the size stored in its item."""

    request_type = BulkExpandRequest
    state = VolumeState.EXPANDING
    success_code = ItemCode.EXPANDED
    lane_params = ("policy",)

    def __init__(self, database: Database, backends: Backends) -> None:
        self._database = database
        self._backends = backends

    def measures(self, params: Mapping[str, Any]) -> bool:
        """Return whether the policy has a usage threshold."""
        return policy_from_json(params["policy"]).measures

    async def measure(self, items: Sequence[ItemRef], project_id: UUID) -> dict[UUID, int | None]:
        """Return the bytes in use of volumes of a project by id; volumes that cannot be measured are left out.

        Those with a file system are, too: their blocks say nothing, but the reports of nodes in their rows do.
        """
        async with self._database.transaction() as session:
            volumes = VolumeRepository(session)
            backends = await volumes.backends_of([item.volume_id for item in items], project_id, measurable=True)
        usages = await asyncio.gather(*(self._measure_on(backend, backends) for backend in set(backends.values())))
        return {volume_id: usage.used for by_volume in usages for volume_id, usage in by_volume.items()}

    def needed(self, update: ItemUpdate) -> dict[str, int]:
        """Return the bytes by which the volume grows."""
        return {"bytes": (update.to_size or 0) - (update.from_size or 0)}

    async def decide_available(
        self,
        session: AsyncSession,
        lane: Lane,
        volumes: Sequence[tuple[ItemRef, VolumeRow]],
        used: Mapping[UUID, int | None],
    ) -> list[ItemUpdate]:
        """Store the measured usage; decide by the policy which volumes to expand, and to which size."""
        policy = policy_from_json(lane.params["policy"])
        await VolumeRepository(session).record_usage(used)
        usages = await _usages(session, [volume for _, volume in volumes], policy, used)
        return [_decide_one(item, volume, policy, usages.get(volume.id)) for item, volume in volumes]

    async def prepare(
        self,
        session: AsyncSession,
        _: Lane,
        volumes: Sequence[tuple[ItemUpdate, VolumeRow]],
        newly_acquired: Mapping[UUID, int],
    ) -> list[ItemWork]:
        """Return the work; there is nothing to write down, since the updates already have the sizes."""
        grown = await grown_offline(session, [volume for _, volume in volumes])
        return [
            ItemWork(
                update,
                volume.backend,
                newly_acquired.get(volume.id, volume.version),
                resumed=volume.id not in newly_acquired,
                filesystem=grown.get(volume.id),
            )
            for update, volume in volumes
        ]

    async def perform(self, work: ItemWork, grant: Grant) -> Result:
        """Expand the volume on its backend, and its file system if nobody has it; that may fail without the item."""
        if work.update.to_size is None:
            raise RuntimeError(f"volume {work.volume_id} was acquired without a target size")
        driver = self._backends.get(work.backend)
        size = await driver.expand(work.volume_id, work.update.to_size, grant)
        growth = None
        if work.filesystem is not None:
            growth = await grow(driver, work.volume_id, work.filesystem, size, grant)
        return self.succeeded(work, size, growth=growth)

    async def seal(self, work: ItemWork, update: ItemUpdate, grant: Grant) -> Result:
        """Seal the volume and return the size found on the backend."""
        return Result(update, await self._backends.get(work.backend).seal(work.volume_id, grant))

    async def record(
        self, session: AsyncSession, lane: Lane, items: Sequence[ItemUpdate], results: Mapping[UUID, Result]
    ) -> None:
        """Store the sizes reported by the backend and release the volumes."""
        await release_volumes(session, lane.parent_id, items, results)

    async def raise_fences(
        self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef | ItemUpdate], *, above: int = 0
    ) -> None:
        """Increment the versions of the volumes, which are what an expansion publishes."""
        await VolumeRepository(session).raise_versions([item.volume_id for item in items], job_id, above=above)

    async def _measure_on(self, backend: str, backends: Mapping[UUID, str]) -> Mapping[UUID, Usage]:
        """Measure all volumes that are on one backend, in one call."""
        try:
            return await self._backends.get(backend).measure([id_ for id_, name in backends.items() if name == backend])
        except BackendUnavailable:
            raise
        except CisternError:
            return {}  # the items end as usage-unknown, or fail with the reason when their volumes are expanded


async def _usages(
    session: AsyncSession, volumes: Sequence[VolumeRow], policy: Policy, measured: Mapping[UUID, int | None]
) -> Mapping[UUID, VolumeUsage]:
    """Return what is known of the use of locked volumes: as measured now, or from their rows if the policy needs it.

    A volume that should have been measured, and could not be, is left out.
    """
    usages = {id_: VolumeUsage(used, is_new=False) for id_, used in measured.items()}
    with_filesystem = {one.id for one in volumes if one.filesystem is not None and policy.measures}
    cooling = {one.id for one in volumes if policy.cools_down(one.autogrow)}
    rows = await usage_of(session, with_filesystem | cooling) if with_filesystem or cooling else {}
    for id_, row in rows.items():
        if id_ in with_filesystem:
            usages[id_] = row
        elif id_ in measured or not policy.measures:
            usages[id_] = row._replace(used=measured.get(id_), is_new=False)
    return usages


def _decide_one(item: ItemRef, volume: VolumeRow, policy: Policy, usage: VolumeUsage | None) -> ItemUpdate:
    """Decide about one item: by the size stored in it, if this is a retry, else by the policy."""
    decision: int | ItemCode
    used = None if usage is None else usage.used
    if item.to_size is None:
        decision = policy.new_size(volume.size, used, volume.autogrow, usage or VolumeUsage())
    else:
        decision = item.to_size if item.to_size > volume.size else ItemCode.ALREADY_LARGE_ENOUGH
    if isinstance(decision, ItemCode):
        # An item has failed if a user must fix something.
        status = ItemStatus.FAILED if decision is ItemCode.POLICY_UNUSABLE else ItemStatus.SKIPPED
        detail = None
        if decision is ItemCode.USAGE_UNKNOWN:
            detail = "It could not be measured." if usage is None else why_unknown(usage, volume.filesystem)
        return ItemUpdate(item.volume_id, status, decision, detail, from_size=volume.size, used=used)
    return ItemUpdate(item.volume_id, ItemStatus.CLAIMED, from_size=volume.size, to_size=decision, used=used)
