"""Bulk expansion: measure volumes, decide their sizes by a policy, and expand them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Final, Self
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.model import ItemCode, ItemRef, ItemStatus, ItemUpdate, Lane
from domain.bulk.operation import BulkOperation, ItemWork, Result, release_volumes
from domain.bulk.requests import BulkRequest, Selection, params_from_request
from domain.db.database import Database
from domain.errors import CisternError, Invalid
from domain.jobs.kinds import JobKind
from domain.operations import VolumeState
from domain.storage.backends import Backends
from domain.storage.context import Grant
from domain.storage.driver import Usage
from domain.storage.errors import BackendUnavailable
from domain.volumes.model import MAX_SIZE, Growth, LockedVolume, rounded_down, rounded_up
from domain.volumes.repository import VolumeRepository

DEFAULT_STEP: Final = 2**20
#: The name of `VolumePolicies` in requests and jobs.
AUTOGROW: Final = "autogrow"
#: The members of a volume's ``autogrow`` policy, and their types.
_AUTOGROW_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "usage_above": (int, float),
    "by": (int,),
    "percent": (int, float),
    "up_to": (int,),
}
#: Cached, so that a growth is validated once and not for each of a million volumes.
_growth: Final = lru_cache(maxsize=64, typed=True)(Growth)
#: Why the usage of a volume that was measured is unknown.
CANNOT_TELL: Final = "Its backend cannot tell how much of it is in use."


@dataclass(frozen=True)
class GrowthPolicy:
    """A growth, rounded up to whole steps, with an optional size limit and an optional usage threshold.

    ``to``, ``by``, ``step`` and ``up_to`` are in bytes; ``usage_above`` is in percent of the volume's size.
    Growth and steps are rounded up to whole blocks. The limit is rounded down: no volume may become larger than it.
    """

    to: int | None = None
    by: int | None = None
    percent: float | None = None
    step: int = DEFAULT_STEP
    up_to: int | None = None
    usage_above: float | None = None

    def __post_init__(self) -> None:
        """Reject values out of bounds, naming the field."""
        Growth(self.to, self.by, self.percent)
        for name in ("step", "up_to"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MAX_SIZE:
                raise Invalid(f"`{name}` must be between 1 and {MAX_SIZE} bytes.", field=name)
        if self.usage_above is not None and not 0 <= self.usage_above <= 100:  # noqa: PLR2004 (percent)
            raise Invalid("`usage_above` must be between 0 and 100 percent.", field="usage_above")

    @property
    def measures(self) -> bool:
        """Whether the new size depends on the volume's usage."""
        return self.usage_above is not None

    def new_size(self, size: int, used: int | None, _: Any = None) -> int | ItemCode:
        """Return the new size of a volume with ``size`` bytes, ``used`` of them in use; or why it is unchanged.

        ``used`` is None if that is unknown; a volume whose growth depends on it is then unchanged.
        """
        if self.usage_above is not None:
            if used is None:
                return ItemCode.USAGE_UNKNOWN
            if used * 100 <= self.usage_above * size:
                return ItemCode.BELOW_THRESHOLD
        if self.to is not None and self.to <= size:
            return ItemCode.ALREADY_LARGE_ENOUGH
        limit = rounded_down(min(self.up_to or MAX_SIZE, MAX_SIZE))
        if size >= limit:
            return ItemCode.AT_LIMIT
        requested = _growth(self.to, self.by, self.percent).requested_size(size)
        step = rounded_up(self.step)
        in_whole_steps = -(-requested // step) * step
        return min(in_whole_steps, limit)

    def to_json(self) -> dict[str, Any]:
        """Convert to the JSON stored in a job."""
        return vars(self)


#: The members of a request that make up its `GrowthPolicy`.
POLICY_FIELDS: Final = tuple(field.name for field in fields(GrowthPolicy))


@dataclass(frozen=True)
class VolumePolicies:
    """The policy that expands each volume by its own ``autogrow``; a volume without one is unchanged."""

    #: The new size always depends on the volume's usage, since every ``autogrow`` has a threshold.
    measures: ClassVar = True

    def new_size(self, size: int, used: int | None, autogrow: Any = None) -> int | ItemCode:
        """Return the new size of a volume by its ``autogrow``, or why it is unchanged."""
        if autogrow is None:
            return ItemCode.NO_POLICY
        policy = _volume_policy(autogrow)
        return ItemCode.POLICY_UNUSABLE if policy is None else policy.new_size(size, used)

    def to_json(self) -> str:
        """Convert to the JSON stored in a job. Workers of versions without such policies cannot read it, and fail."""
        return AUTOGROW


Policy = GrowthPolicy | VolumePolicies


def policy_from_json(policy: Any) -> Policy:
    """Build the policy from the JSON stored in a job."""
    return VolumePolicies() if policy == AUTOGROW else GrowthPolicy(**policy)


def _volume_policy(autogrow: Any) -> GrowthPolicy | None:
    """Build the policy from a volume's ``autogrow``; None if it is invalid, since an older version may have stored it.

    A threshold and a limit are required: without them the volume would grow at every run, without end.
    """
    valid = isinstance(autogrow, dict) and {"usage_above", "up_to"} <= autogrow.keys() <= _AUTOGROW_TYPES.keys()
    if not valid or not all(type(value) in _AUTOGROW_TYPES[name] for name, value in autogrow.items()):
        return None
    try:
        return GrowthPolicy(**autogrow)
    except Invalid:
        return None


@dataclass(frozen=True)
class BulkExpandRequest(BulkRequest):
    """A request to expand many volumes by a policy. On a retry, the sizes stored in the ledger stay binding."""

    kind = JobKind.BULK_EXPAND

    policy: Policy

    def to_json(self) -> dict[str, Any]:
        """Convert to the params of the job."""
        return super().to_json() | {"policy": self.policy.to_json()}

    @classmethod
    def from_json(cls, params: dict[str, Any]) -> Self:
        """Build from the params of a job."""
        policy, selection = policy_from_json(params["policy"]), Selection.from_json(params["selection"])
        return cls(policy, selection=selection, max_concurrent=params["max_concurrent"])

    @classmethod
    def from_request(cls, request: dict[str, Any]) -> Self:
        """Build from a request in the form of the HTTP API."""
        params = params_from_request(request, own={*POLICY_FIELDS, "policy"})
        policy = {name: params[name] for name in POLICY_FIELDS if name in params}
        return cls.from_json({"policy": policy} | params)


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
        """Return the bytes in use of volumes of a project by id; volumes that cannot be measured are left out."""
        async with self._database.transaction() as session:
            backends = await VolumeRepository(session).backends_of([item.volume_id for item in items], project_id)
        usages = await asyncio.gather(*(self._measure_on(backend, backends) for backend in set(backends.values())))
        return {volume_id: usage.used for by_volume in usages for volume_id, usage in by_volume.items()}

    def needed(self, update: ItemUpdate) -> dict[str, int]:
        """Return the bytes by which the volume grows."""
        return {"bytes": (update.to_size or 0) - (update.from_size or 0)}

    async def decide_available(
        self,
        session: AsyncSession,
        lane: Lane,
        volumes: Sequence[tuple[ItemRef, LockedVolume]],
        used: Mapping[UUID, int | None],
    ) -> list[ItemUpdate]:
        """Store the measured usage; decide by the policy which volumes to expand, and to which size."""
        policy = policy_from_json(lane.params["policy"])
        await VolumeRepository(session).record_usage(used)
        return [_decide_one(item, volume, policy, used) for item, volume in volumes]

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

    async def perform(self, work: ItemWork, grant: Grant) -> Result:
        """Expand the volume on its backend."""
        if work.update.to_size is None:
            raise RuntimeError(f"volume {work.volume_id} was acquired without a target size")
        driver = self._backends.get(work.backend)
        return self.succeeded(work, await driver.expand(work.volume_id, work.update.to_size, grant))

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


def _decide_one(item: ItemRef, volume: LockedVolume, policy: Policy, measured: Mapping[UUID, int | None]) -> ItemUpdate:
    """Decide about one item: by the size stored in it, if this is a retry, else by the policy."""
    decision: int | ItemCode
    used = measured.get(item.volume_id)
    if item.to_size is None:
        decision = policy.new_size(volume.size, used, volume.autogrow)
    else:
        decision = item.to_size if item.to_size > volume.size else ItemCode.ALREADY_LARGE_ENOUGH
    if isinstance(decision, ItemCode):
        # An item has failed if a user must fix something.
        status = ItemStatus.FAILED if decision is ItemCode.POLICY_UNUSABLE else ItemStatus.SKIPPED
        detail = None
        if decision is ItemCode.USAGE_UNKNOWN:
            detail = CANNOT_TELL if item.volume_id in measured else "It could not be measured."
        return ItemUpdate(item.volume_id, status, decision, detail, from_size=volume.size, used=used)
    return ItemUpdate(item.volume_id, ItemStatus.CLAIMED, from_size=volume.size, to_size=decision, used=used)
