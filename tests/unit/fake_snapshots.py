"""Fake service of snapshots: in memory, with the errors of the real one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from domain import operations
from domain.db.base import DEFAULT_PROJECT, in_project
from domain.db.pagination import Page, PageRequest
from domain.errors import (
    Invalid,
    NameTaken,
    SnapshotBusy,
    SnapshotNotFound,
    SnapshotUnusable,
)
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin
from domain.jobs.model import Job
from domain.operations import SnapshotState, VolumeState
from domain.snapshots.model import Snapshot
from domain.snapshots.repository import SnapshotFilter
from domain.volumes.model import Volume
from domain.volumes.service import NewVolume
from tests.unit.fake_volumes import FakeJobs, FakeVolumes, job_row, matcher, newest_first, snapshot_row, volume_row


@dataclass
class FakeSnapshots:
    """Snapshots that keep the state in which a request puts them: no worker runs."""

    jobs: FakeJobs
    volumes: FakeVolumes
    rows: dict[UUID, Snapshot] = field(default_factory=dict)

    def add(self, snapshot: Snapshot) -> Snapshot:
        self.rows[snapshot.id] = snapshot
        self.volumes.have_snapshots.add(snapshot.volume_id)
        return snapshot

    async def get(self, snapshot_id: UUID, *, project_id: UUID = DEFAULT_PROJECT) -> Snapshot:
        snapshot = in_project(self.rows.get(snapshot_id), project_id)
        if snapshot is None:
            raise SnapshotNotFound(snapshot_id)
        return snapshot

    async def list_snapshots(
        self, filters: SnapshotFilter, request: PageRequest, *, project_id: UUID
    ) -> Page[Snapshot]:
        return newest_first(self.rows, matcher(filters), request)

    async def request_take(
        self,
        volume_id: UUID,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        allow_torn: bool = False,
        origin: RequestOrigin = ANONYMOUS,
    ) -> Job:
        return await self.jobs.accept(origin, self._take(volume_id, name, labels or {}, allow_torn))

    async def _take(self, volume_id: UUID, name: str, labels: Mapping[str, str], allow_torn: bool) -> Job:  # noqa: FBT001
        volume = await self.volumes.get(volume_id)
        if any((one.volume_id, one.name) == (volume_id, name) for one in self.rows.values()):
            raise NameTaken
        self.volumes.acquire(volume, VolumeState.SNAPSHOTTING)
        taking = snapshot_row(volume, name, state=SnapshotState.TAKING, labels=dict(labels))
        job = self._job("snapshot.take", self.add(taking), volume)
        job.params = {**job.params, "allow_torn": allow_torn}
        return job

    async def request_restore(self, snapshot_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        return await self.jobs.accept(origin, self._restore(snapshot_id))

    async def _restore(self, snapshot_id: UUID) -> Job:
        snapshot = await self.get(snapshot_id)
        volume = await self.volumes.get(snapshot.volume_id)
        self._acquire(snapshot, SnapshotState.RESTORING)
        self.volumes.acquire(volume, VolumeState.RESTORING)
        return self._job("snapshot.restore", snapshot, volume)

    async def request_delete(self, snapshot_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        return await self.jobs.accept(origin, self._delete(snapshot_id))

    async def _delete(self, snapshot_id: UUID) -> Job:
        snapshot = await self.get(snapshot_id)
        self._acquire(snapshot, SnapshotState.DELETING)
        return self._job("snapshot.delete", snapshot, None)

    async def request_clone(self, snapshot_id: UUID, request: NewVolume, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        return await self.jobs.accept(origin, self._clone(snapshot_id, request))

    async def _clone(self, snapshot_id: UUID, request: NewVolume) -> Job:
        snapshot = await self.get(snapshot_id)
        if request.size is not None and request.size < snapshot.size:
            raise Invalid(field="size")
        self.volumes.require_free(request.name)
        self._acquire(snapshot, SnapshotState.CLONING)
        size = request.size or snapshot.size
        clone = self.volumes.add(volume_row(request.name, size=size, state=VolumeState.CREATING, **request.columns))
        return self._job("snapshot.clone", snapshot, clone)

    async def request_clone_of_volume(
        self, volume_id: UUID, request: NewVolume, *, allow_torn: bool = False, origin: RequestOrigin = ANONYMOUS
    ) -> Job:
        return await self.jobs.accept(origin, self._clone_volume(volume_id, request, allow_torn))

    async def _clone_volume(self, volume_id: UUID, request: NewVolume, allow_torn: bool) -> Job:  # noqa: FBT001
        source = await self.volumes.get(volume_id)
        self.volumes.acquire(source, VolumeState.SNAPSHOTTING)
        size = request.size or source.size
        columns = {**request.columns, "source_volume_id": source.id}
        clone = self.volumes.add(volume_row(request.name, size=size, state=VolumeState.CREATING, **columns))
        job = job_row("volume.clone", volume_id=clone.id, params={"fence_version": 1, "allow_torn": allow_torn})
        return self.jobs.add(job)

    def _acquire(self, snapshot: Snapshot, state: SnapshotState) -> None:
        if state not in operations.SNAPSHOT_MOVES[snapshot.state]:
            if snapshot.state in operations.BUSY:
                raise SnapshotBusy(job_id=snapshot.job_id, state=snapshot.state)
            raise SnapshotUnusable(state=snapshot.state)
        snapshot.state = state

    def _job(self, kind: str, snapshot: Snapshot, volume: Volume | None) -> Job:
        job = job_row(kind, snapshot_id=snapshot.id, volume_id=volume and volume.id)
        snapshot.job_id = job.id
        return self.jobs.add(job)
