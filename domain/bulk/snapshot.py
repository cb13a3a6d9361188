"""Bulk snapshots: insert a snapshot's row for each volume, and take the snapshot.

If a snapshot fails and nothing of it exists on the backend, its row is deleted: no client has seen its id yet. If
something may exist, the row stays in the state ``error``, so that the snapshot can be deleted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Self
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from domain.bulk.model import ItemCode, ItemRef, ItemStatus, ItemUpdate, Lane
from domain.bulk.operation import BulkOperation, ItemWork, Result, release_volumes
from domain.bulk.requests import BulkRequest, Selection, params_from_request
from domain.errors import Invalid
from domain.jobs.kinds import JobKind
from domain.operations import SnapshotState, VolumeState
from domain.snapshots.model import Snapshot
from domain.snapshots.repository import BulkSnapshotRepository, SnapshotRelease, SnapshotRepository
from domain.snapshots.retention import RetentionRule
from domain.snapshots.service import SnapshotService
from domain.storage.backends import Backends
from domain.storage.consistency import take_snapshot
from domain.storage.context import Grant
from domain.volumes.attachments.freezing import Freezer
from domain.volumes.attachments.repository import attached_ones
from domain.volumes.model import MAX_NAME, VolumeRow

#: Length of what is added to the name: the time, and the end of the schedule's id. It tells the snapshots of different
#: runs apart, also of two schedules with the same name that are due at the same time.
_STAMP_LENGTH: Final = len("-20260131T235959123Z-0123456789ab")
MAX_PREFIX: Final = MAX_NAME - _STAMP_LENGTH
#: Defaults of the request's own members. The empty name is rejected; without retention rule all snapshots are kept.
_DEFAULTS: Final[dict[str, Any]] = {"name": "", "keep_last": None, "keep_days": None, "allow_torn": False}


@dataclass(frozen=True)
class BulkSnapshotRequest(BulkRequest):
    """A request to take snapshots of many volumes, of ``max_concurrent`` at once over all workers.

    Unless they may be torn, an item fails if its volume is in use and the bytes of one moment cannot be kept.
    The snapshots' name is ``name`` followed by the time, and by the end of the schedule's id if a schedule takes them.
    """

    kind = JobKind.BULK_SNAPSHOT

    name: str
    keep: RetentionRule = field(default_factory=RetentionRule, kw_only=True)
    allow_torn: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Reject a name that is empty or too long."""
        if not 1 <= len(self.name) <= MAX_PREFIX:
            raise Invalid(f"`name` must have 1 to {MAX_PREFIX} characters; the time is added to it.", field="name")

    def to_json(self) -> dict[str, Any]:
        """Convert to the params of the job."""
        return super().to_json() | {"name": self.name, **self.keep.to_json(), "allow_torn": self.allow_torn}

    @classmethod
    def from_json(cls, params: dict[str, Any]) -> Self:
        """Build from the params of a job."""
        return cls(
            params["name"],
            selection=Selection.from_json(params["selection"]),
            max_concurrent=params["max_concurrent"],
            keep=RetentionRule(params["keep_last"], params["keep_days"]),
            allow_torn=params.get("allow_torn", False),
        )

    @classmethod
    def from_request(cls, request: dict[str, Any]) -> Self:
        """Build from a request in the form of the HTTP API."""
        return cls.from_json(_DEFAULTS | params_from_request(request, own=_DEFAULTS))

    def refuse_schedule_members(self) -> None:
        """Refuse a retention rule."""
        if (keep := self.keep.first_field) is not None:
            raise Invalid(f"`{keep}` is for schedules: they delete only their own snapshots.", field=keep)

    def job_params(self, *, time: datetime, schedule_id: UUID | None) -> dict[str, Any]:
        """Return the params of the job.

        They include ``schedule_id``, because a retry takes snapshots for the same schedule, but is not a run of it.
        """
        params = self.to_json() | {"schedule_id": None if schedule_id is None else str(schedule_id)}
        return self.retry_params(params, time=time)

    @classmethod
    def retry_params(cls, params: dict[str, Any], *, time: datetime) -> dict[str, Any]:
        """Give the snapshots a new name: they show the volumes as of ``time``."""
        return params | {"snapshot_name": stamped(params["name"], time.astimezone(UTC), params.get("schedule_id"))}


def stamped(name: str, time: datetime, schedule_id: str | None) -> str:
    """Return the name of the snapshots of one run; ``time`` is in UTC, and is written to the millisecond."""
    stamp = f"{name}-{time:%Y%m%dT%H%M%S}{time.microsecond // 1000:03}Z"
    return stamp if schedule_id is None else f"{stamp}-{schedule_id[-12:]}"


class SnapshotOperation(BulkOperation):
    """Takes a snapshot of each volume; the volume itself is unchanged."""

    request_type = BulkSnapshotRequest
    state = VolumeState.SNAPSHOTTING
    success_code = ItemCode.SNAPSHOTTED
    lane_params = ("snapshot_name", "schedule_id", "keep_last", "keep_days", "allow_torn")

    def __init__(self, backends: Backends, snapshots: SnapshotService, freezer: Freezer) -> None:
        self._backends = backends
        self._freezer = freezer
        self._snapshots = snapshots

    def needed(self, update: ItemUpdate) -> dict[str, int]:  # noqa: ARG002 (the same for all)
        """Return that one snapshot is added."""
        return {"snapshots": 1}

    async def decide_available(
        self,
        session: AsyncSession,
        lane: Lane,
        volumes: Sequence[tuple[ItemRef, VolumeRow]],
        _: Mapping[UUID, int | None],
    ) -> list[ItemUpdate]:
        """Decide to take a snapshot of every volume that has none of this name."""
        name = lane.params["snapshot_name"]
        conflicts = await BulkSnapshotRepository(session).volumes_with(name, [volume.id for _, volume in volumes])
        failed, code = ItemStatus.FAILED, ItemCode.NAME_TAKEN
        detail = f"The volume already has a snapshot named {name!r}."
        return [
            ItemUpdate(volume.id, failed, code, detail, from_size=volume.size)
            if volume.id in conflicts
            else ItemUpdate(volume.id, ItemStatus.CLAIMED, from_size=volume.size)
            for _, volume in volumes
        ]

    async def prepare(
        self,
        session: AsyncSession,
        lane: Lane,
        volumes: Sequence[tuple[ItemUpdate, VolumeRow]],
        newly_acquired: Mapping[UUID, int],
    ) -> list[ItemWork]:
        """Insert the snapshots of newly acquired volumes; those of the others were inserted by earlier attempts."""
        snapshots = BulkSnapshotRepository(session)
        await snapshots.add([_new_snapshot(volume, lane) for _, volume in volumes if volume.id in newly_acquired])
        held = await snapshots.held_by(lane.parent_id, [volume.id for _, volume in volumes])
        attached = await attached_ones(session, [volume.id for _, volume in volumes])
        allow_torn, work = lane.params.get("allow_torn", False), []
        for update, volume in volumes:
            snapshot_id, version = held[volume.id]
            taken_up = update._replace(snapshot_id=snapshot_id)
            resumed = volume.id not in newly_acquired
            options = {"attached": volume.id in attached, "allow_torn": allow_torn}
            work.append(ItemWork(taken_up, volume.backend, version, resumed, **options))
        return work

    async def perform(self, work: ItemWork, grant: Grant) -> Result:
        """Take the snapshot on the volume's backend."""
        options = {"allow_torn": work.allow_torn, "attached": work.attached}
        driver = self._freezer.while_taking(self._backends.get(work.backend), attached=work.attached)
        taken = await take_snapshot(driver, work.volume_id, _snapshot_id(work), grant, **options)
        return self.succeeded(work, taken.size, consistency=taken.consistency)

    async def seal(self, work: ItemWork, update: ItemUpdate, grant: Grant) -> Result:
        """Seal the snapshot; drop its id from the update if nothing exists on the backend."""
        driver = self._backends.get(work.backend)
        size = await driver.seal_snapshot(work.volume_id, _snapshot_id(work), grant)
        return Result(update._replace(snapshot_id=None) if size is None else update)

    async def record(
        self, session: AsyncSession, lane: Lane, items: Sequence[ItemUpdate], results: Mapping[UUID, Result]
    ) -> None:
        """Release the volumes; store what is known of new snapshots, mark possible leftovers ``error``, drop the rest.

        The retention rule of a schedule applies to the volumes that have a new snapshot.
        """
        await release_volumes(session, lane.parent_id, items, {})
        succeeded = [item for item in items if item.status is ItemStatus.SUCCEEDED]
        others = [item for item in items if item.status is not ItemStatus.SUCCEEDED]
        snapshots = SnapshotRepository(session)
        await snapshots.release(_releases(lane.parent_id, succeeded, results), SnapshotState.READY)
        await snapshots.release(_releases(lane.parent_id, others, {}), SnapshotState.ERROR)
        without_snapshot = [item.volume_id for item in others if item.snapshot_id is None]
        await BulkSnapshotRepository(session).discard(without_snapshot, lane.parent_id)
        keep, schedule_id = RetentionRule(lane.params["keep_last"], lane.params["keep_days"]), _schedule_id(lane)
        if schedule_id is not None and keep.first_field is not None:
            renewed = [item.volume_id for item in succeeded]
            await self._snapshots.delete_expired(session, renewed, schedule_id, keep, caller=lane.created_by)

    async def raise_fences(
        self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef | ItemUpdate], *, above: int = 0
    ) -> None:
        """Increment the versions of the snapshots, which are what this operation publishes."""
        await BulkSnapshotRepository(session).raise_versions([item.volume_id for item in items], job_id, above=above)

    async def give_up(self, session: AsyncSession, job_id: UUID, items: Sequence[ItemRef]) -> None:
        """Release the volumes unchanged, and the snapshots in ``error``, since they may exist on the backend."""
        await super().give_up(session, job_id, items)
        await SnapshotRepository(session).release(_releases(job_id, items, {}), SnapshotState.ERROR)


def _releases(
    job_id: UUID, items: Sequence[ItemUpdate | ItemRef], results: Mapping[UUID, Result]
) -> list[SnapshotRelease]:
    releases = []
    for item in items:
        if item.snapshot_id is not None:
            result = results.get(item.volume_id)
            found = (None, None) if result is None else (result.size, result.consistency)
            releases.append(SnapshotRelease(item.snapshot_id, job_id, *found))
    return releases


def _new_snapshot(volume: VolumeRow, lane: Lane) -> Snapshot:
    return Snapshot(
        id=uuid7(),
        project_id=volume.project_id,
        volume_id=volume.id,
        name=lane.params["snapshot_name"],
        state=SnapshotState.TAKING,
        size=volume.size,
        version=1,
        job_id=lane.parent_id,
        schedule_id=_schedule_id(lane),
        labels={},
    )


def _snapshot_id(work: ItemWork) -> UUID:
    if work.update.snapshot_id is None:
        raise RuntimeError(f"volume {work.volume_id} was acquired without a snapshot")
    return work.update.snapshot_id


def _schedule_id(lane: Lane) -> UUID | None:
    schedule_id = lane.params["schedule_id"]
    return None if schedule_id is None else UUID(schedule_id)
