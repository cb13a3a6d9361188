"""Fake services of jobs and volumes, with the errors of the real ones, and builders of rows. No worker runs."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from domain.audit.model import NOBODY, Actor
from domain.db.base import DEFAULT_PROJECT, in_project
from domain.db.pagination import Page, PageRequest
from domain.errors import (
    IdempotencyKeyReused,
    JobEnded,
    JobIsChild,
    JobNotRetryable,
    NameTaken,
    UnknownBackend,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
    VolumeUnusable,
)
from domain.jobs.acceptance import ANONYMOUS, IdempotentReplay, IdempotentRequest, RequestOrigin
from domain.jobs.model import Job, new_job
from domain.jobs.states import RETRYABLE, JobStatus
from domain.jobs.store.jobs import JobFilter, require_job
from domain.operations import BUSY, VOLUME_MOVES, SnapshotState, VolumeState
from domain.snapshots.model import Snapshot
from domain.storage.backends import Backends
from domain.volumes.model import Growth, Volume
from domain.volumes.repository import VolumeFilter
from domain.volumes.service import NewVolume

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def job_row(kind: str = "volume.create", **columns: Any) -> Job:
    """Return a job as PostgreSQL would return it."""
    times: dict[str, Any] = {"run_at": NOON, "created_at": NOON}
    status = columns.pop("status", JobStatus.QUEUED)
    own = {"project_id": DEFAULT_PROJECT, "max_attempts": 8, **times, **columns}
    job = new_job(kind, own.pop("params", {"fence_version": 1}), **own)
    job.status = status
    return job


def volume_row(name: str = "one", **columns: Any) -> Volume:
    """Return an available volume as PostgreSQL would return it."""
    defaults: dict[str, Any] = {
        "backend": "memory",
        "state": VolumeState.AVAILABLE,
        "size": 8192,
        "version": 1,
        "labels": {},
        "created_at": NOON,
        "updated_at": NOON,
    }
    return Volume(project_id=DEFAULT_PROJECT, name=name, **{"id": uuid7(), **defaults, **columns})


def snapshot_row(volume: Volume, name: str = "one", **columns: Any) -> Snapshot:
    """Return a ready snapshot as PostgreSQL would return it."""
    defaults: dict[str, Any] = {
        "state": SnapshotState.READY,
        "size": volume.size,
        "version": 1,
        "labels": {},
        "created_at": NOON,
        "updated_at": NOON,
    }
    own = {"project_id": volume.project_id, "volume_id": volume.id, "name": name}
    return Snapshot(id=uuid7(), **own, **{**defaults, **columns})


def newest_first(rows: dict[UUID, Any], matches: Callable[[Any], bool], request: PageRequest) -> Page[Any]:
    before = request.before
    newest = sorted((row for row in rows.values() if matches(row)), key=lambda row: row.id, reverse=True)
    return request.page([row for row in newest if before is None or row.id < before][: request.limit + 1])


def begins_with(row: Any, prefix: str | None) -> bool:
    """Return whether the id of a row begins with these digits."""
    return prefix is None or row.id.hex.startswith(prefix.replace("-", "").lower())


def matcher(filters: Any, **columns: Any) -> Callable[[Any], bool]:
    """Return whether a row matches the filters that are given, and has these values."""
    special = ("id_prefix", "labels")
    wanted = {name: value for name, value in vars(filters).items() if value is not None and name not in special}
    labels = getattr(filters, "labels", {}).items()
    return lambda row: (
        begins_with(row, filters.id_prefix)
        and (not labels or labels <= row.labels.items())
        and all(getattr(row, name) == value for name, value in (wanted | columns).items())
    )


@dataclass
class FakeJobs:
    """Jobs that no worker claims."""

    rows: dict[UUID, Job] = field(default_factory=dict)
    replays: dict[tuple[str | None, str], tuple[IdempotentRequest, tuple[int, Any]]] = field(default_factory=dict)

    async def accept(self, origin: RequestOrigin, accepting: Awaitable[Job]) -> Job:
        """Accept a request; one with a key only once."""
        if origin.idempotency is None:
            return await accepting
        name = (origin.caller, origin.idempotency.key)
        if name in self.replays:
            _ = asyncio.ensure_future(accepting).cancel()
            first, replay = self.replays[name]
            if (first.route, first.fingerprint) != (origin.idempotency.route, origin.idempotency.fingerprint):
                raise IdempotencyKeyReused
            raise IdempotentReplay(*replay)
        job = await accepting
        self.replays[name] = origin.idempotency, origin.idempotency.render(job)
        return job

    def add(self, job: Job) -> Job:
        self.rows[job.id] = job
        return job

    async def get(self, job_id: UUID, *, project_id: UUID = DEFAULT_PROJECT) -> Job:
        return require_job(self.rows.get(job_id), job_id, project_id)

    async def list_jobs(self, filters: JobFilter, request: PageRequest, *, project_id: UUID) -> Page[Job]:
        return newest_first(self.rows, matcher(filters, parent_id=filters.parent_id), request)

    async def last_failures(self, volume_ids: Collection[UUID], *, project_id: UUID) -> Mapping[UUID, Job]:
        return {
            job.volume_id: job
            for _, job in sorted(self.rows.items())
            if job.volume_id is not None and job.volume_id in volume_ids and job.status in RETRYABLE
        }

    async def cancel(self, job_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        return await self.accept(origin, self._cancel(job_id))

    async def _cancel(self, job_id: UUID) -> Job:
        job = await self.get(job_id)
        if job.ended:
            raise JobEnded(job_status=job.status)
        if job.parent_id is not None:
            raise JobIsChild(job_id=job.parent_id)
        job.status, job.cancel_requested_at, job.finished_at = JobStatus.CANCELLED, NOON, NOON
        return job

    async def retry(self, job_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        return await self.accept(origin, self._retry(job_id))

    async def _retry(self, job_id: UUID) -> Job:
        job = await self.get(job_id)
        if job.status not in RETRYABLE:
            raise JobNotRetryable(job_status=job.status)
        return self.add(job_row(job.kind, retry_of=job.id, volume_id=job.volume_id))


@dataclass
class FakeVolumes:
    """Volumes that keep the state in which a request puts them."""

    jobs: FakeJobs
    backends: Backends
    rows: dict[UUID, Volume] = field(default_factory=dict)
    have_snapshots: set[UUID] = field(default_factory=set)

    def add(self, volume: Volume) -> Volume:
        self.rows[volume.id] = volume
        return volume

    async def get(self, volume_id: UUID, *, project_id: UUID = DEFAULT_PROJECT) -> Volume:
        volume = in_project(self.rows.get(volume_id), project_id)
        if volume is None:
            raise VolumeNotFound(volume_id)
        return volume

    def path(self, volume: Volume) -> str | None:
        return f"/volumes/{volume.id}"

    async def list_volumes(self, filters: VolumeFilter, request: PageRequest, *, project_id: UUID) -> Page[Volume]:
        def matches(volume: Volume) -> bool:
            return (
                filters.state in (None, volume.state)
                and filters.name in (None, volume.name)
                and filters.labels.items() <= volume.labels.items()
                and begins_with(volume, filters.id_prefix)
                and (not filters.ids or volume.id in filters.ids)
            )

        return newest_first(self.rows, matches, request)

    async def change(
        self,
        volume_id: UUID,
        changes: Mapping[str, Any],
        *,
        check: Callable[[Volume], None] = lambda _: None,
        actor: Actor = NOBODY,
    ) -> Volume:
        volume = await self.get(volume_id)
        check(volume)
        if "name" in changes:
            self.require_free(changes["name"])
        for name, value in changes.items():
            setattr(volume, name, value)
        return volume

    async def request_create(self, request: NewVolume, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        return await self.jobs.accept(origin, self._create(request, origin))

    async def _create(self, request: NewVolume, origin: RequestOrigin) -> Job:
        backend = request.backend or self.backends.names()[0]
        if backend not in self.backends:
            raise UnknownBackend(backend, self.backends)
        self.require_free(request.name)
        volume = self.add(
            volume_row(
                request.name,
                size=request.size,
                **request.columns,
                state=VolumeState.CREATING,
            )
        )
        return self._job("volume.create", volume, origin.caller)

    async def request_expand(self, volume_id: UUID, growth: Growth, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        return await self.jobs.accept(origin, self._expand(volume_id, growth, origin))

    async def _expand(self, volume_id: UUID, growth: Growth, origin: RequestOrigin) -> Job:
        volume = await self.get(volume_id)
        to_size = growth.target(volume.size)
        self.acquire(volume, VolumeState.EXPANDING)
        return self._job("volume.expand", volume, origin.caller, to_size=to_size)

    async def request_delete(self, volume_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        return await self.jobs.accept(origin, self._delete(volume_id, origin))

    async def _delete(self, volume_id: UUID, origin: RequestOrigin) -> Job:
        volume = await self.get(volume_id)
        if volume_id in self.have_snapshots:
            raise VolumeHasSnapshots
        self.acquire(volume, VolumeState.DELETING)
        return self._job("volume.delete", volume, origin.caller)

    def require_free(self, name: str) -> None:
        if any(volume.name == name for volume in self.rows.values()):
            raise NameTaken

    def acquire(self, volume: Volume, state: VolumeState) -> None:
        if volume.state in BUSY:
            raise VolumeBusy(job_id=volume.job_id, state=volume.state)
        if state not in VOLUME_MOVES[volume.state]:
            raise VolumeUnusable(state=volume.state)
        volume.state = state

    def _job(self, kind: str, volume: Volume, caller: str | None, **params: Any) -> Job:
        job = job_row(
            kind, params={**params, "fence_version": 1}, volume_id=volume.id, backend=volume.backend, created_by=caller
        )
        volume.job_id = job.id
        return self.jobs.add(job)


@dataclass
class FakeVolumeNames:
    """The names of the volumes that there are."""

    volumes: FakeVolumes

    async def of(self, volume_ids: Collection[UUID], *, project_id: UUID) -> Mapping[UUID, str]:
        return {one.id: one.name for one in self.volumes.rows.values() if one.id in volume_ids}
