"""Routes of jobs: list, get, wait, cancel, retry."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.accepted import AcceptedDep
from api.dependencies import JobsDep, NoQuery, OriginDep
from api.etag import IfNoneMatchDep, job_tag
from api.openapi import POLLED, accepts, documented_get, errors
from api.problems import RETRY_SECONDS
from api.schemas.jobs import JobOut, JobQuery
from api.schemas.pagination import Paginated, paginated_response
from domain.errors import (
    BadCursor,
    JobEnded,
    JobIsChild,
    JobNotFound,
    JobNotRetryable,
    NameTaken,
    ShrinkRefused,
    SnapshotBusy,
    SnapshotNotFound,
    SnapshotUnusable,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
    VolumeUnusable,
)

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get("", operation_id="list_jobs", summary="List jobs", responses=errors(BadCursor))
async def list_jobs(query: Annotated[JobQuery, Query()], jobs: JobsDep) -> Paginated[JobOut]:
    """List jobs, newest first; the children of a bulk job only with `parent_id`."""
    return paginated_response(await jobs.list_jobs(query.filters(), query.page_of("jobs")), JobOut.from_row)


@router.get(
    "/{job_id}",
    operation_id="get_job",
    summary="Get a job, or wait for its end",
    response_model=JobOut,
    responses=documented_get("job", **POLLED) | errors(JobNotFound),
    dependencies=[NoQuery],
)
async def get_job(
    job_id: UUID,
    jobs: JobsDep,
    accepted: AcceptedDep,
    response: Response,
    if_none_match: IfNoneMatchDep,
) -> JobOut | Response:
    """Return a job. Poll with `If-None-Match`, or send `Prefer: wait=30` to get the response when it has ended."""
    job = await accepted.wait(await jobs.get(job_id))
    if not job.ended:
        response.headers["Retry-After"] = str(RETRY_SECONDS)
    return if_none_match.not_modified(job_tag(job)) or JobOut.from_row(job)


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    operation_id="cancel_job",
    summary="Cancel a job",
    responses=accepts(JobNotFound, JobEnded, JobIsChild),
    dependencies=[NoQuery],
)
async def cancel_job(job_id: UUID, jobs: JobsDep, origin: OriginDep, accepted: AcceptedDep) -> JobOut:
    """Request the cancellation of a job. A queued job ends at once; a running one may still succeed."""
    return await accepted(await jobs.cancel(job_id, origin=origin))


@router.post(
    "/{job_id}/retry",
    status_code=202,
    operation_id="retry_job",
    summary="Retry a job",
    responses=accepts(
        *(JobNotFound, JobNotRetryable, JobIsChild, NameTaken, ShrinkRefused),
        *(VolumeNotFound, VolumeBusy, VolumeUnusable, VolumeHasSnapshots),
        *(SnapshotNotFound, SnapshotBusy, SnapshotUnusable),
    ),
    dependencies=[NoQuery],
)
async def retry_job(job_id: UUID, jobs: JobsDep, origin: OriginDep, accepted: AcceptedDep) -> JobOut:
    """Create a job that repeats what an ended job did not achieve; `retry_of` has the id of the ended one."""
    return await accepted(await jobs.retry(job_id, origin=origin))
