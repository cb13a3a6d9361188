"""How the use cases of volumes write their jobs, and what they read out of them when these have been at work."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from domain.jobs.claimed import ClaimedJob
from domain.jobs.kinds import FailedJobs, SucceededJobs
from domain.jobs.model import Job, new_job
from domain.jobs.outcomes import Payload
from domain.volumes.model import Volume
from domain.volumes.repository import LockedVolume, Release, require_held


def job_on(volume: Volume | LockedVolume, kind: str, params: Payload, *, max_attempts: int, **columns: Any) -> Job:
    """Make the job into whose hands the volume was given."""
    return new_job(
        kind,
        {**params, "fence": volume.version},
        max_attempts=max_attempts,
        job_id=volume.job_id,
        volume_id=volume.id,
        backend=volume.backend,
        **columns,
    )


def volume_of(job: Job | ClaimedJob) -> UUID:
    """Which volume a job has."""
    if job.volume_id is None:
        raise RuntimeError(f"{job.kind} {job.id} names no volume")
    return job.volume_id


def result_of(job: ClaimedJob, size: int | None) -> Payload:
    """What the job shows, and what its effect is recorded from. ``size`` in bytes."""
    return {"volume_id": str(job.volume_id)} | ({} if size is None else {"size": size})


def releases(jobs: SucceededJobs | FailedJobs) -> list[Release]:
    """Say which volumes these jobs let go of, and how large they are now."""
    return [
        Release(job.volume_id, job.id, (payload or {}).get("size"))
        for job, payload in jobs
        if job.volume_id is not None
    ]


def require_all(done: SucceededJobs, touched: Sequence[UUID]) -> None:
    """Make sure that jobs that succeed had their volumes to the end."""
    require_held((volume_of(job) for job, _ in done), touched)
