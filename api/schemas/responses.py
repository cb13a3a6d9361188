"""What volumes, snapshots, jobs and backends look like on the wire."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from api.schemas.fields import Labels, Moment
from domain.jobs.model import Job
from domain.jobs.states import JobStatus
from domain.snapshots.states import SnapshotState
from domain.volumes.model import Volume
from domain.volumes.states import VolumeState

_VOLUME_ID = "01a0b1c2-0000-7000-8000-000000000001"
_SNAPSHOT_ID = "01a0b1c2-0000-7000-8000-000000000003"
_JOB_ID = "01a0b1c2-0000-7000-8000-000000000002"
_TIME = "2026-01-31T23:59:59.123456Z"

VOLUME_EXAMPLE: dict[str, Any] = {
    "id": _VOLUME_ID,
    "name": "postgres-1",
    "backend": "local",
    "state": "available",
    "size": 10737418240,
    "used": 4096,
    "used_at": _TIME,
    "version": 2,
    "job_id": None,
    "labels": {"team": "search"},
    "autogrow": {"usage_above": 80, "percent": 20.0, "up_to": 1099511627776},
    "path": f"/srv/volumes/{_VOLUME_ID}/data",
    "created_at": _TIME,
    "updated_at": _TIME,
}
SNAPSHOT_EXAMPLE: dict[str, Any] = {
    "id": _SNAPSHOT_ID,
    "volume_id": _VOLUME_ID,
    "name": "before-the-upgrade",
    "state": "ready",
    "size": 10737418240,
    "version": 2,
    "job_id": None,
    "schedule_id": None,
    "created_at": _TIME,
    "updated_at": _TIME,
}
JOB_EXAMPLE: dict[str, Any] = {
    "id": _JOB_ID,
    "kind": "volume.expand",
    "status": "queued",
    "volume_id": _VOLUME_ID,
    "snapshot_id": None,
    "backend": "local",
    "parent_id": None,
    "retry_of": None,
    "created_by": "nightly",
    "schedule_id": None,
    "scheduled_for": None,
    "attempt": 0,
    "max_attempts": 8,
    "worker_id": None,
    "params": {"to_size": 21474836480},
    "result": None,
    "error": None,
    "cancel_requested_at": None,
    "progress": None,
    "run_at": _TIME,
    "created_at": _TIME,
    "started_at": None,
    "finished_at": None,
}
BACKEND_EXAMPLE: dict[str, Any] = {
    "name": "local",
    "driver": "file",
    "total": 1099511627776,
    "used": 10737418240,
    "error": None,
}


class VolumeOut(BaseModel):
    """One volume. Sizes are in bytes."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [VOLUME_EXAMPLE]})

    id: UUID
    name: str
    backend: str
    state: VolumeState
    size: int
    used: int | None = Field(description="Allocated bytes, as measured at `used_at`.")
    used_at: Moment | None
    version: int = Field(description="Raised by every accepted operation and by every end of one.")
    job_id: UUID | None = Field(description="The job that has the volume at the moment.")
    labels: Labels
    autogrow: dict[str, Any] | None = Field(
        description="When a bulk expansion with the policy `autogrow` grows it, by how much, and how far."
    )
    path: str | None = Field(None, description="Where its bytes are, on backends that have such places.")
    created_at: Moment
    updated_at: Moment

    @classmethod
    def from_row(cls, volume: Volume, path: str | None) -> Self:
        """Show a row."""
        return cls.model_validate(volume).model_copy(update={"path": path})


class SnapshotOut(BaseModel):
    """One snapshot: a volume's bytes as they were at one moment."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [SNAPSHOT_EXAMPLE]})

    id: UUID
    volume_id: UUID
    name: str
    state: SnapshotState
    size: int = Field(description="The volume's size in bytes when the snapshot was taken.")
    version: int = Field(description="Raised by every accepted operation and by every end of one.")
    job_id: UUID | None = Field(description="A job that has the snapshot at the moment.")
    schedule_id: UUID | None = Field(description="The schedule that it was made by, and that may delete it again.")
    created_at: Moment
    updated_at: Moment


class Failure(BaseModel):
    """What went wrong; on a queued job, why it is tried again."""

    model_config = ConfigDict(extra="allow")

    code: str
    detail: str


class Progress(BaseModel):
    """How far a job has come: one for many volumes in volumes, one that copies a snapshot in bytes."""

    unit: Literal["volumes", "bytes"]
    total: int
    succeeded: int
    failed: int
    skipped: int
    per_second: float | None = Field(description="On average since its start; null as long as nothing is done.")
    estimated_end: Moment | None = Field(description="When it will have ended at that rate; null when it has.")

    @classmethod
    def from_job(cls, job: Job) -> Self | None:
        """Show how far a job has come, as far as that is known."""
        if job.total is None:
            return None
        unit: Literal["volumes", "bytes"] = "volumes" if job.kind.startswith("bulk.") else "bytes"
        counts = {name: getattr(job, name) or 0 for name in ("succeeded", "failed", "skipped")}
        now = job.finished_at or datetime.now(UTC)
        rate = _rate(job, sum(counts.values()), now)
        left = None if rate is None or job.ended else (job.total - sum(counts.values())) / rate
        end = None if left is None else now + timedelta(seconds=left)
        return cls(unit=unit, total=job.total, **counts, per_second=rate, estimated_end=end)


def _rate(job: Job, done: int, now: datetime) -> float | None:
    """How much of a job was done in a second; PostgreSQL's clock and ours may differ by a little."""
    if job.started_at is None or not done:
        return None
    return round(done / max((now - job.started_at).total_seconds(), 0.001), 3)


def _public_params(params: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the worker needs to know and nobody else."""
    return {name: value for name, value in params.items() if name != "fence"}


class JobOut(BaseModel):
    """One job, from its acceptance to its end."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [JOB_EXAMPLE]})

    id: UUID
    kind: str
    status: JobStatus
    volume_id: UUID | None
    snapshot_id: UUID | None
    backend: str | None
    parent_id: UUID | None
    retry_of: UUID | None = Field(description="The job that this one is another try of.")
    created_by: str | None
    schedule_id: UUID | None = Field(None, description="The schedule that has asked for it.")
    scheduled_for: Moment | None = Field(None, description="When it was due there.")
    attempt: int
    max_attempts: int
    worker_id: UUID | None
    params: Annotated[dict[str, Any], BeforeValidator(_public_params)]
    result: dict[str, Any] | None
    error: Failure | None
    cancel_requested_at: Moment | None
    progress: Progress | None = None
    run_at: Moment = Field(description="Not before this time will it be tried (again).")
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None

    @classmethod
    def from_row(cls, job: Job) -> Self:
        """Show a row."""
        return cls.model_validate(job).model_copy(update={"progress": Progress.from_job(job)})


class BackendOut(BaseModel):
    """One storage backend, and how full it is. Sizes are in bytes."""

    model_config = ConfigDict(json_schema_extra={"examples": [BACKEND_EXAMPLE]})

    name: str
    driver: str
    total: int | None = Field(None, description="Null where there is no limit, or when it could not be found out.")
    used: int | None = None
    error: Failure | None = Field(None, description="Why its capacity could not be found out.")


class BackendsOut(BaseModel):
    """All backends, the default first."""

    items: list[BackendOut]
