"""Helpers shared by the volume operations: build a job for a volume, and read what finished jobs report.

A job reports a payload (``result_of``); from it follows the row that the job releases (``releases``).
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from domain.jobs.claimed import ClaimedJob
from domain.jobs.kinds import FailedJobs, SucceededJobs
from domain.jobs.model import Job, new_job
from domain.jobs.outcomes import Payload
from domain.volumes.model import Volume
from domain.volumes.repository import LockedVolume, Release, require_held


def job_for(volume: Volume | LockedVolume, kind: str, params: Payload, *, max_attempts: int, **columns: Any) -> Job:
    """Build the job that has acquired a volume; its id is the volume's ``job_id``."""
    return new_job(
        kind,
        {**params, "fence_version": volume.version},
        max_attempts=max_attempts,
        job_id=volume.job_id,
        volume_id=volume.id,
        backend=volume.backend,
        **columns,
    )


def volume_of(job: Job | ClaimedJob) -> UUID:
    """Return the id of the volume that a job holds."""
    if job.volume_id is None:
        raise RuntimeError(f"{job.kind} {job.id} names no volume")
    return job.volume_id


def result_of(job: ClaimedJob, size: int | None) -> Payload:
    """Build the result that a job shows and from which its effect is recorded; ``size`` in bytes."""
    return {"volume_id": str(job.volume_id)} | ({} if size is None else {"size": size})


def releases(jobs: SucceededJobs | FailedJobs) -> list[Release]:
    """List the volumes that these jobs release, with the sizes that they report."""
    return [
        Release(job.volume_id, job.id, (payload or {}).get("size"))
        for job, payload in jobs
        if job.volume_id is not None
    ]


def require_all_held(succeeded: SucceededJobs, changed: Sequence[UUID]) -> None:
    """Require that every succeeded job still held its volume; ``changed`` are the volumes that were updated."""
    require_held((volume_of(job) for job, _ in succeeded), changed)
