"""Helpers shared by the snapshot operations: build their jobs, and read what finished jobs report.

A job's ``volume_id`` names the volume that the job holds: that of the snapshot for take and restore, the new volume for
a clone. A delete job holds no volume, so that it neither waits for nor blocks other operations on it. Clone and delete
jobs therefore carry the snapshot's volume in ``params["of_volume"]``; `source_of` reads either.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from domain.errors import Invalid
from domain.jobs.claimed import ClaimedJob
from domain.jobs.kinds import FailedJobs, SucceededJobs
from domain.jobs.model import Job, new_job
from domain.jobs.outcomes import Payload
from domain.snapshots.model import Snapshot
from domain.snapshots.repository import SnapshotRelease
from domain.snapshots.states import SnapshotState
from domain.volumes.model import Volume
from domain.volumes.operations import volume_of
from domain.volumes.repository import Release, require_held
from domain.volumes.service import NewVolume


def job_for(snapshot: Snapshot, kind: str, params: Payload, *, fence: int, max_attempts: int, **columns: Any) -> Job:
    """Build a job for a snapshot; ``fence`` is the version of the volume or snapshot that the job publishes."""
    return new_job(
        kind, {**params, "fence_version": fence}, max_attempts=max_attempts, snapshot_id=snapshot.id, **columns
    )


def new_snapshot(volume: Volume, name: str, job_id: UUID) -> Snapshot:
    """Build the row of a new snapshot, held by the job that takes it."""
    return Snapshot(
        id=uuid7(),
        volume_id=volume.id,
        name=name,
        state=SnapshotState.TAKING,
        size=volume.size,
        version=1,
        job_id=job_id,
    )


def clone_size(new: NewVolume, snapshot: Snapshot) -> int:
    """Return the size of a clone in bytes: the requested one, or that of the snapshot.

    Raises:
        Invalid: the requested size is smaller than the snapshot, whose data would be cut off.
    """
    if new.size is not None and new.size < snapshot.size:
        raise Invalid(f"A clone cannot be smaller than its snapshot, {snapshot.size} bytes.", field="size")
    return new.size or snapshot.size


def snapshot_of(job: Job | ClaimedJob) -> UUID:
    """Return the id of the snapshot that a job works on."""
    if job.snapshot_id is None:
        raise RuntimeError(f"{job.kind} {job.id} names no snapshot")
    return job.snapshot_id


def source_of(job: Job | ClaimedJob) -> UUID:
    """Return the id of the volume that the snapshot was taken of."""
    return UUID(job.params["of_volume"]) if "of_volume" in job.params else volume_of(job)


def result_of(job: ClaimedJob, size: int | None) -> Payload:
    """Build the result of a job; if the backend reports no size (None), it is the size that the job asked for."""
    return sealed_result_of(job, job.params.get("size") if size is None else size)


def sealed_result_of(job: ClaimedJob, size: int | None) -> Payload:
    """Build the result of a sealed job, with the size found on the backend; None: nothing was found."""
    ids = {"snapshot_id": str(snapshot_of(job)), "volume_id": str(job.volume_id or source_of(job))}
    return ids | ({} if size is None else {"size": size})


def volume_releases(jobs: SucceededJobs | FailedJobs, *, resized: bool) -> list[Release]:
    """List the volumes that these jobs release; with the sizes they report, if this kind of job changes them."""
    return [Release(volume_of(job), job.id, _size(payload) if resized else None) for job, payload in jobs]


def snapshot_releases(jobs: SucceededJobs | FailedJobs, *, resized: bool) -> list[SnapshotRelease]:
    """List the snapshots that these jobs release; with the sizes they report, if this kind of job changes them."""
    return [SnapshotRelease(snapshot_of(job), job.id, _size(payload) if resized else None) for job, payload in jobs]


def require_both_held(succeeded: SucceededJobs, volumes: Sequence[UUID], snapshots: Sequence[UUID]) -> None:
    """Require that every succeeded job still held its volume and its snapshot, given those that were updated."""
    require_held((volume_of(job) for job, _ in succeeded), volumes)
    require_held((snapshot_of(job) for job, _ in succeeded), snapshots)


def _size(payload: Payload | None) -> int | None:
    return (payload or {}).get("size")
