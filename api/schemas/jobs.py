"""Jobs: list filters and the response."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.base import EXAMPLE_JOB_ID, EXAMPLE_TIME, EXAMPLE_VOLUME_ID, Omittable, RequestBody
from api.schemas.fields import IdPrefix, JobKind, Moment, NameFilter, UtcDatetime
from api.schemas.pagination import PageQuery
from domain.db.listing import shortened
from domain.jobs.many_jobs import PAGE
from domain.jobs.model import Job
from domain.jobs.states import JobStatus
from domain.jobs.stats import MAX_COUNTED
from domain.jobs.store.jobs import JobFilter

JOB_EXAMPLE: Final[dict[str, Any]] = {
    "id": EXAMPLE_JOB_ID,
    "kind": "volume.expand",
    "status": "queued",
    "volume_id": EXAMPLE_VOLUME_ID,
    "volume_name": "postgres-1",
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
    "waiting_for": None,
    "run_at": EXAMPLE_TIME,
    "created_at": EXAMPLE_TIME,
    "started_at": None,
    "finished_at": None,
}


class JobSelectors(BaseModel):
    """What jobs are selected by."""

    status: Omittable[JobStatus] = None
    kind: Omittable[JobKind] = None
    volume_id: Omittable[UUID] = None
    schedule_id: Omittable[UUID] = None
    created_by: Omittable[NameFilter] = Field(None, description="The name of the key, or of the schedule.")
    created_after: Omittable[Moment] = Field(None, description="At this time or later.")
    created_before: Omittable[Moment] = Field(None, description="Before this time.")

    def filters(self) -> JobFilter:
        """Convert to the domain filter."""
        return JobFilter(**{name: getattr(self, name) for name in JobSelectors.model_fields})


class JobQuery(JobSelectors, PageQuery):
    """Filters of a list of jobs."""

    parent_id: Omittable[UUID] = Field(
        None, description="List the child jobs of this bulk job; without it, child jobs are left out."
    )
    id_prefix: Omittable[IdPrefix] = None

    def filters(self) -> JobFilter:
        """Convert to the domain filter."""
        return replace(super().filters(), parent_id=self.parent_id, id_prefix=self.id_prefix)


class ManyJobsIn(JobSelectors, RequestBody):
    """Which jobs are to be changed: all that match."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"kind": "volume.expand", "dry_run": True}]})

    before: Omittable[UUID] = Field(None, description="`next_before` of the request before: go on with older jobs.")
    dry_run: Annotated[bool, Field(strict=True, description="Only count the jobs; nothing is changed.")] = False


class ManyJobsOut(BaseModel):
    """What became of the newest jobs that match."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "accepted": 98,
                    "refused": {"job-ended": 2},
                    "next_before": EXAMPLE_JOB_ID,
                    "matched": None,
                    "more": False,
                }
            ]
        }
    )

    accepted: int = Field(description="How many jobs were changed.")
    refused: dict[str, int] = Field(description="How many were refused, by the code of the error.")
    next_before: UUID | None = Field(
        description=f"A request changes {PAGE} jobs: send it again with this as `before`. Null: these were all."
    )
    matched: int | None = Field(description=f"Only of a dry run: how many jobs match, counted up to {MAX_COUNTED}.")
    more: bool = Field(description="Only of a dry run: more jobs match than were counted.")


class FailureOut(BaseModel):
    """An error; on a queued job, the reason of its retry."""

    model_config = ConfigDict(extra="allow")

    code: str
    detail: str


#: An estimate beyond it says nothing, and may not even be a date.
_MAX_ESTIMATED_SECONDS: Final = 365 * 86_400


class ProgressOut(BaseModel):
    """Progress of a job: in volumes for a bulk job, in bytes for a job that copies a snapshot."""

    unit: Literal["volumes", "bytes"]
    total: int
    succeeded: int
    failed: int
    skipped: int
    per_second: float | None = Field(description="Average rate since the start; null until something is done.")
    estimated_end: UtcDatetime | None = Field(
        description="Estimated from the rate; null when the job has ended, or is expected to take more than a year."
    )

    @classmethod
    def from_job(cls, job: Job) -> Self | None:
        """Return the progress of a job; None if its total is unknown."""
        if job.total is None:
            return None
        unit: Literal["volumes", "bytes"] = "volumes" if job.kind.startswith("bulk.") else "bytes"
        counts = {name: getattr(job, name) or 0 for name in ("succeeded", "failed", "skipped")}
        completed = sum(counts.values())
        if job.started_at is None or not completed:
            return cls(unit=unit, total=job.total, **counts, per_second=None, estimated_end=None)
        now = job.finished_at or datetime.now(UTC)
        # At least 1 ms: PostgreSQL's clock may be ahead of this host's.
        seconds = max((now - job.started_at).total_seconds(), 0.001)
        # Four significant digits: it may be one volume per hour, or many gigabytes per second.
        rate = float(f"{completed / seconds:.4g}")
        left = max(job.total - completed, 0) * seconds / completed
        end = None if job.ended or left > _MAX_ESTIMATED_SECONDS else now + timedelta(seconds=left)
        return cls(unit=unit, total=job.total, **counts, per_second=rate, estimated_end=end)


class WaitingForOut(BaseModel):
    """A call to the storage that cannot report progress, and takes long."""

    call: str = Field(description="What the storage does, such as `reflink`, `allocate`, `sync` or `remove`.")
    since: UtcDatetime
    limit_seconds: float = Field(description="When it has taken longer, another worker gets the job.")


def _without_fence(params: dict[str, Any]) -> dict[str, Any]:
    """Leave out what only workers need."""
    return {name: value for name, value in params.items() if name != "fence_version"}


class JobOut(BaseModel):
    """One job."""

    model_config = ConfigDict(json_schema_extra={"examples": [JOB_EXAMPLE]})

    id: UUID
    kind: str
    status: JobStatus
    volume_id: UUID | None
    volume_name: str | None = Field(None, description="The name that the volume had when the job was accepted.")
    snapshot_id: UUID | None
    backend: str | None
    parent_id: UUID | None
    retry_of: UUID | None = Field(description="The job that this one retries.")
    created_by: str | None
    schedule_id: UUID | None = Field(None, description="The schedule that created it.")
    scheduled_for: UtcDatetime | None = Field(None, description="The time of the schedule that it was created for.")
    attempt: int
    max_attempts: int
    worker_id: UUID | None
    params: dict[str, Any]
    result: dict[str, Any] | None
    error: FailureOut | None
    cancel_requested_at: UtcDatetime | None
    progress: ProgressOut | None = None
    waiting_for: WaitingForOut | None = Field(
        None, description="Why a running job makes no progress, if that is known."
    )
    run_at: UtcDatetime = Field(description="Earliest time of the next attempt.")
    created_at: UtcDatetime
    started_at: UtcDatetime | None
    finished_at: UtcDatetime | None

    @classmethod
    def whole(cls, job: Job) -> Self:
        """Render a row for the response to a GET of the job itself."""
        return cls._rendered(job, _without_fence(job.params))

    @classmethod
    def from_row(cls, job: Job) -> Self:
        """Render a row, without long params: they never change, and may have ten thousand ids."""
        return cls._rendered(job, shortened(_without_fence(job.params)))

    @classmethod
    def _rendered(cls, job: Job, params: dict[str, Any]) -> Self:
        shown = {"params": params, "progress": ProgressOut.from_job(job)}
        return cls.model_validate(dict.fromkeys(cls.model_fields) | job.loaded_columns() | shown)
