"""What the pages of jobs show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self
from uuid import UUID

from api.access import role_to_request
from api.dashboard.queries import JobsQuery, LedgerQuery
from api.schemas.jobs import ProgressOut
from domain.access.model import Principal, Role
from domain.bulk.model import Item
from domain.jobs.kinds import BULK_KINDS
from domain.jobs.model import Job
from domain.jobs.states import RETRYABLE, JobStatus
from domain.services import Services

#: Results with this code have done nothing, although nothing went wrong.
_NOTHING: Final = "nothing-selected"


@dataclass(frozen=True)
class Progress:
    """How far a job is. ``percent`` is of what has ended, whatever has become of it."""

    unit: str
    total: int
    succeeded: int
    failed: int
    skipped: int
    per_second: float | None
    estimated_end: datetime | None

    @classmethod
    def of(cls, job: Job) -> Self | None:
        """Return the progress of a job; None if its total is not known."""
        progress = ProgressOut.from_job(job)
        return None if progress is None else cls(**progress.model_dump())

    @property
    def ended(self) -> int:
        """How many volumes or bytes are dealt with."""
        return self.succeeded + self.failed + self.skipped

    @property
    def percent(self) -> float:
        """How much of the total is dealt with, in per cent."""
        return 100.0 if self.total == 0 else min(100.0, 100 * self.ended / self.total)


@dataclass(frozen=True)
class JobLine:
    """A job in a list."""

    id: UUID
    kind: str
    status: str
    volume_id: UUID | None
    #: The present name; that of the job's acceptance if the volume has been deleted.
    volume_name: str | None
    is_volume_gone: bool
    created_by: str | None
    created_at: datetime
    finished_at: datetime | None
    took: timedelta | None
    progress: Progress | None
    problem: str | None
    worker_id: UUID | None
    parent_id: UUID | None
    is_retryable: bool

    @classmethod
    def of(cls, job: Job, names: Mapping[UUID, str], viewer_role: Role) -> Self:
        """Describe a job; ``names`` has those of volumes."""
        name = None if job.volume_id is None else names.get(job.volume_id)
        return cls(
            id=job.id,
            kind=job.kind,
            status=job.status,
            volume_id=job.volume_id,
            volume_name=job.volume_name if name is None else name,
            is_volume_gone=name is None,
            created_by=job.created_by,
            created_at=job.created_at,
            finished_at=job.finished_at,
            took=_took(job),
            progress=Progress.of(job),
            problem=_problem(job),
            worker_id=job.worker_id,
            parent_id=job.parent_id,
            is_retryable=may_retry(job, viewer_role),
        )


def _took(job: Job) -> timedelta | None:
    return None if job.started_at is None else (job.finished_at or datetime.now(UTC)) - job.started_at


def _problem(job: Job) -> str | None:
    if job.error is not None:
        return str(job.error["code"])
    return _NOTHING if job.result is not None and job.result.get("code") == _NOTHING else None


def may_retry(job: Job, role: Role) -> bool:
    """Return whether somebody may retry a job, if it was not retried before."""
    return job.status in RETRYABLE and job.parent_id is None and role.includes(role_to_request(job.kind))


@dataclass(frozen=True)
class Event:
    """One point of a job's timeline; ``tone`` is empty for what is to come."""

    title: str
    at: datetime | None
    tone: str
    detail: str | None = None
    code: str | None = None


@dataclass(frozen=True)
class LedgerLine:
    """One volume of a bulk job."""

    item: Item
    volume_name: str | None


@dataclass(frozen=True)
class JobPage:
    """One job, with what belongs to it."""

    line: JobLine
    job: Job
    params: dict[str, Any]
    timeline: Sequence[Event]
    retried_by: UUID | None
    lanes: Sequence[JobLine]
    has_ledger: bool
    may_cancel: bool
    may_retry: bool


async def lines_of(services: Services, jobs: Sequence[Job], principal: Principal) -> Sequence[JobLine]:
    """Describe jobs, with the names of their volumes."""
    ids = {job.volume_id for job in jobs if job.volume_id is not None}
    names = await services.volume_names.of(ids, project_id=principal.project.id)
    return [JobLine.of(job, names, principal.role) for job in jobs]


async def job_page(services: Services, job_id: UUID, principal: Principal, *, max_lanes: int = 50) -> JobPage:
    """Read what the page of a job shows.

    Raises:
        JobNotFound: no such job.
    """
    job = await services.jobs.get(job_id, project_id=principal.project.id)
    retried_by, lanes = await services.jobs.related(job, limit=max_lanes)
    line, *lane_lines = await lines_of(services, [job, *lanes], principal)
    is_asked_to_end = job.cancel_requested_at is not None
    return JobPage(
        line=line,
        job=job,
        params={name: value for name, value in job.params.items() if name != "fence_version"},
        timeline=_timeline(job),
        retried_by=retried_by,
        lanes=lane_lines,
        has_ledger=job.kind in BULK_KINDS,
        may_cancel=not job.ended and job.parent_id is None and not is_asked_to_end,
        may_retry=line.is_retryable and retried_by is None,
    )


def _timeline(job: Job) -> Sequence[Event]:
    by = f"by {job.created_by}" if job.created_by else None
    events = [Event("Accepted", job.created_at, "done", by)]
    if job.started_at is not None:
        events.append(Event("Started", job.started_at, "done", _attempt(job)))
    if job.cancel_requested_at is not None:
        events.append(Event("Cancellation requested", job.cancel_requested_at, "warn"))
    if job.status is JobStatus.QUEUED:
        title = "Waits for its next attempt" if job.attempt else "Waits for a worker"
        events.append(Event(title, job.run_at, "now", *_error(job)))
    elif job.status is JobStatus.RUNNING:
        events.append(Event("Runs", None, "now", _waiting_text(job)))
    else:
        tone = {JobStatus.SUCCEEDED: "good", JobStatus.CANCELLED: "quiet", JobStatus.PARTIAL: "warn"}
        ended = {JobStatus.PARTIAL: "Ended in part"}.get(job.status, job.status.value.capitalize())
        events.append(Event(ended, job.finished_at, tone.get(job.status, "bad"), *_error(job)))
    return events


def _attempt(job: Job) -> str:
    if job.attempt <= 1 and not job.error:
        return "at the first attempt"
    return f"attempt {job.attempt} of {job.max_attempts}"


def _error(job: Job) -> tuple[str | None, str | None]:
    """Return the detail and the code of what went wrong, or of a result that is nothing."""
    for found in (job.error, job.result):
        if found is not None and "detail" in found:
            return str(found["detail"]), str(found["code"])
    return None, None


def _waiting_text(job: Job) -> str | None:
    return None if job.waiting_for is None else f"The storage is busy with {job.waiting_for['call']}"


async def jobs_of_query(
    services: Services, query: JobsQuery, principal: Principal
) -> tuple[Sequence[JobLine], str | None]:
    """Return the jobs on a page of the list, and the cursor of the next page.

    Raises:
        BadCursor: the cursor is not from this list.
    """
    project_id = principal.project.id
    page = await services.jobs.list_jobs(query.filters(), query.page_of("jobs page", project_id), project_id=project_id)
    return await lines_of(services, page.items, principal), page.next_cursor


async def ledger_of_query(
    services: Services, job_id: UUID, query: LedgerQuery, principal: Principal
) -> tuple[Sequence[LedgerLine], str | None]:
    """Return a page of a job's ledger, with the names of the volumes, and the cursor of the next page.

    Raises:
        JobNotFound: no such job.
        BadCursor: the cursor is not from this list.
    """
    project_id = principal.project.id
    request = query.page_of(f"ledger page of {job_id}", project_id)
    items = await services.bulk.items(
        job_id, query.status, project_id=project_id, after=request.after, limit=request.limit
    )
    page = request.page(items, by=lambda item: item.volume_id)
    names = await services.volume_names.of([item.volume_id for item in page.items], project_id=project_id)
    return [LedgerLine(item, names.get(item.volume_id)) for item in page.items], page.next_cursor
