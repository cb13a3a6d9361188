"""Jobs over HTTP: look, wait, cancel, retry."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response

from api.absent import HEADER_TEXT
from api.answers import Answer
from api.dependencies import Jobs, NoQuery
from api.openapi import ACCEPTED, POLLED, refusals
from api.pagination import Paginated, paginated_response
from api.problems import RETRY_SECONDS
from api.v1.requests import JobQuery
from api.v1.schemas import JobOut
from domain.errors import (
    BadCursor,
    JobEnded,
    JobNotFound,
    JobNotRetryable,
    NameTaken,
    ShrinkRefused,
    VolumeBusy,
    VolumeNotFound,
    VolumeUnusable,
)
from domain.jobs.model import Job

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get("", operation_id="list_jobs", summary="List jobs", responses=refusals(BadCursor))
async def list_jobs(query: Annotated[JobQuery, Query()], jobs: Jobs) -> Paginated[JobOut]:
    """List jobs, newest first; the parts of a bulk job only when it is named."""
    return paginated_response(await jobs.list_jobs(query.wanted(), query.page_of("jobs")), JobOut.of)


@router.get(
    "/{job_id}",
    operation_id="get_job",
    summary="Look at a job, or wait for its end",
    response_model=JobOut,
    responses=POLLED | refusals(JobNotFound),
    dependencies=[NoQuery],
)
async def get_job(
    job_id: UUID,
    jobs: Jobs,
    answer: Answer,
    response: Response,
    if_none_match: Annotated[
        list[str] | None, Header(description="An `ETag` that was seen before."), HEADER_TEXT
    ] = None,
) -> JobOut | Response:
    """Show a job. Poll with `If-None-Match`, or say `Prefer: wait=30` and be answered when it has ended."""
    job = await answer.patiently(await jobs.get(job_id))
    response.headers.update(_poll_headers(job))
    if _seen(job, if_none_match or []):
        return Response(status_code=304, headers=dict(response.headers))
    return JobOut.of(job)


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    operation_id="cancel_job",
    summary="Cancel a job",
    responses=ACCEPTED | refusals(JobNotFound, JobEnded),
    dependencies=[NoQuery],
)
async def cancel_job(job_id: UUID, jobs: Jobs, answer: Answer) -> JobOut:
    """Ask for a job's end. One that never began ends at once; one at work may still succeed."""
    return await answer(await jobs.cancel(job_id))


@router.post(
    "/{job_id}/retry",
    status_code=202,
    operation_id="retry_job",
    summary="Retry a job",
    responses=ACCEPTED
    | refusals(JobNotFound, JobNotRetryable, VolumeNotFound, VolumeBusy, VolumeUnusable, NameTaken, ShrinkRefused),
    dependencies=[NoQuery],
)
async def retry_job(job_id: UUID, jobs: Jobs, answer: Answer) -> JobOut:
    """Ask once more for what an ended job did not achieve; the answer is a new job, linked by `retry_of`."""
    return await answer(await jobs.retry(job_id))


def _etag(job: Job) -> str:
    return f'"{job.id}-{job.version}"'


def _poll_headers(job: Job) -> dict[str, str]:
    return {"ETag": _etag(job)} | ({} if job.ended else {"Retry-After": str(RETRY_SECONDS)})


def _seen(job: Job, tags: list[str]) -> bool:
    """Compare weakly, as RFC 9110 asks for here."""
    seen = {tag.strip().removeprefix("W/") for tag in ",".join(tags).split(",")}
    return bool(seen & {_etag(job), "*"})
