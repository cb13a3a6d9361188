"""How the use cases of snapshots write their jobs, and what they read out of them when these have been at work.

A job's ``volume_id`` is the volume that it has in its hands. One that deletes has none, because whatever else goes on
with the volume does not matter to it; one that clones has the new one. ``params`` then tell whose the snapshot is.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from domain.db.database import Database
from domain.jobs.claimed import ClaimedJob
from domain.jobs.kinds import FailedJobs, SucceededJobs
from domain.jobs.model import Job, new_job
from domain.jobs.outcomes import Payload
from domain.jobs.transport.job_queue import JobQueue
from domain.snapshots.model import Snapshot
from domain.snapshots.repository import SnapshotRelease
from domain.storage.backends import Backends
from domain.storage.context import Grant
from domain.storage.driver import StorageDriver
from domain.volumes.repository import Release, require_held


class SnapshotJobs:
    """What all use cases of snapshots stand on."""

    def __init__(self, database: Database, queue: JobQueue, backends: Backends, *, max_attempts: int) -> None:
        self._database = database
        self._queue = queue
        self._backends = backends
        self._max_attempts = max_attempts

    async def seal_snapshot(self, job: ClaimedJob, grant: Grant) -> Payload:
        """Shut earlier attempts to take or delete a snapshot out for good, and report what they left there."""
        driver, volume_id, snapshot_id = self._storage(job)
        return _found(job, await driver.seal_snapshot(volume_id, snapshot_id, grant))

    async def seal_volume(self, job: ClaimedJob, grant: Grant) -> Payload:
        """Shut earlier attempts to restore or make a volume out for good, and report what they left there."""
        driver, _, _ = self._storage(job)
        return _found(job, await driver.seal(volume_of(job), grant))

    def _job(self, kind: str, snapshot: Snapshot, params: Payload, *, fence: int, **columns: Any) -> Job:
        """Make a job; ``fence`` is the version of what it is going to publish."""
        return new_job(
            kind,
            {**params, "fence": fence},
            max_attempts=self._max_attempts,
            snapshot_id=snapshot.id,
            **columns,
        )

    async def _dispatch(self, job: Job) -> Job:
        await self._queue.dispatch([job.dispatch])
        return job

    def _storage(self, job: ClaimedJob) -> tuple[StorageDriver, UUID, UUID]:
        """Reach the backend, and say which snapshot of which volume the job is about."""
        return self._backends.get(job.backend or ""), source_of(job), snapshot_of(job)


def volume_of(job: Job | ClaimedJob) -> UUID:
    """Name the volume that the job has in its hands."""
    if job.volume_id is None:
        raise RuntimeError(f"{job.kind} {job.id} names no volume")
    return job.volume_id


def snapshot_of(job: Job | ClaimedJob) -> UUID:
    """Name the snapshot that the job is about."""
    if job.snapshot_id is None:
        raise RuntimeError(f"{job.kind} {job.id} names no snapshot")
    return job.snapshot_id


def source_of(job: Job | ClaimedJob) -> UUID:
    """Name the volume that the snapshot is one of."""
    return UUID(job.params["of_volume"]) if "of_volume" in job.params else volume_of(job)


def result(job: ClaimedJob, size: int | None) -> Payload:
    """Tell what was made; a backend that knows no sizes (None) has made what the job asked for."""
    return _found(job, job.params.get("size") if size is None else size)


def _found(job: ClaimedJob, size: int | None) -> Payload:
    names = {"snapshot_id": str(snapshot_of(job)), "volume_id": str(job.volume_id or source_of(job))}
    return names | ({} if size is None else {"size": size})


def volumes(jobs: SucceededJobs | FailedJobs, *, resized: bool) -> list[Release]:
    """List the volumes that these jobs let go of, with the sizes they now have if jobs of this kind change them."""
    return [Release(volume_of(job), job.id, _size(payload) if resized else None) for job, payload in jobs]


def snapshots(jobs: SucceededJobs | FailedJobs, *, resized: bool) -> list[SnapshotRelease]:
    """List the snapshots that these jobs let go of, as `volumes` does."""
    return [SnapshotRelease(snapshot_of(job), job.id, _size(payload) if resized else None) for job, payload in jobs]


def require_both(done: SucceededJobs, touched_volumes: Sequence[UUID], touched_snapshots: Sequence[UUID]) -> None:
    """Make sure that each of these jobs had its volume and its snapshot."""
    require_held((volume_of(job) for job, _ in done), touched_volumes)
    require_held((snapshot_of(job) for job, _ in done), touched_snapshots)


def _size(payload: Payload | None) -> int | None:
    return (payload or {}).get("size")
