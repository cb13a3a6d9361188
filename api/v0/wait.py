"""Wait for the job of a request. If it has not ended after MAX_WAIT_SECONDS, the response is the 202 of version 1."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Depends, Request, Response
from starlette.responses import JSONResponse

from api.acceptance import MAX_WAIT_SECONDS, REPLAYED, accepted_headers, wait_for_end
from api.dependencies import ProjectDep, ServicesDep
from api.error_handlers import EarlyResponse
from api.held_requests import holding
from api.openapi import ACCEPTED, Reason, Responses, errors
from api.problems import JOB_FAILED, problem_response
from api.schemas.jobs import JobOut
from domain.errors import IdempotencyKeyReused, JobNotFound, NotFound, TooManyHeldRequests, Unavailable
from domain.jobs.acceptance import IdempotentReplay
from domain.jobs.model import Job
from domain.jobs.states import JobStatus

_SUCCESSFUL: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.PARTIAL})


async def _wait_for_job(
    request: Request, services: ServicesDep, project_id: ProjectDep, response: Response
) -> AsyncIterator[Callable[[Awaitable[Job]], Awaitable[Job]]]:
    async def accepted(job: Awaitable[Job]) -> Job:
        """Return the job of the request; for a repeated request, the job of the first one."""
        try:
            return await job
        except IdempotentReplay as replay:
            response.headers[REPLAYED] = "true"
            return await services.jobs.get(UUID(replay.body["id"]), project_id=project_id)

    async def wait_for_job(requested: Awaitable[Job]) -> Job:
        """Await the request, and return its job when it has succeeded.

        Raises:
            EarlyResponse: the job has failed or was cancelled, or has not ended after MAX_WAIT_SECONDS.
        """
        job = await accepted(requested)
        # The job is already accepted: if the wait fails, the client must still learn its id.
        with suppress(Unavailable, NotFound):
            await wait_for_end(request, services, job.id, MAX_WAIT_SECONDS)
            job = await services.jobs.get(job.id, project_id=project_id)
        if job.status in _SUCCESSFUL:
            return job
        raise EarlyResponse(_failed(request, job, response) if job.ended else _still_running(job, response))

    with holding(request):  # from before the job is accepted: its request cannot be refused afterwards
        yield wait_for_job


#: Awaits a request, and returns its job when it has succeeded.
WaitForJobDep = Annotated[Callable[[Awaitable[Job]], Awaitable[Job]], Depends(_wait_for_job)]


def waits(*reasons: Reason) -> Responses:
    """Declare the responses of a route that waits for its job."""
    accepted: dict[str, Any] = ACCEPTED[202] | {
        "model": JobOut,
        "description": "The job has not ended in time: poll it.",
    }
    return {202: accepted} | errors(*reasons, JobNotFound, IdempotencyKeyReused, JOB_FAILED, TooManyHeldRequests)


def _still_running(job: Job, response: Response) -> Response:
    """Return the 202 of version 1, with the job to poll."""
    headers = {**accepted_headers(str(job.id)), **response.headers}
    return JSONResponse(JobOut.from_row(job).model_dump(mode="json"), 202, headers)


def _failed(request: Request, job: Job, response: Response) -> Response:
    """Return a problem with the job's id and error."""
    detail = (job.error or {}).get("detail") or f"The job was {job.status}."
    extensions = {"job_id": job.id, "job_status": job.status, "error": job.error}
    return problem_response(request, JOB_FAILED, detail, headers=response.headers, extensions=extensions)
