"""Wait for the job of a request. If it has not ended after MAX_WAIT_SECONDS, the response is the 202 of version 1."""

from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Depends, Request, Response
from starlette.responses import JSONResponse

from api.dependencies import ServicesDep
from api.idempotency import REPLAYED, job_location
from api.openapi import ACCEPTED, Responses, errors
from api.prefer import MAX_WAIT_SECONDS
from api.problems import JOB_FAILED, ProblemType, problem_response
from api.schemas.jobs import JobOut
from domain.errors import CisternError, IdempotencyKeyReused, JobNotFound, NotFound, Unavailable
from domain.jobs.acceptance import IdempotentReplay
from domain.jobs.model import Job
from domain.jobs.states import JobStatus
from domain.services import Services

_SUCCESSFUL: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.PARTIAL})


class _NoResult(Exception):
    """The job has not produced what the route would return."""

    def __init__(self, job: Job, headers: Mapping[str, str]) -> None:
        super().__init__(str(job.id))
        self.job = job
        self.headers = headers


class JobStillRunning(_NoResult):
    """The job has not ended in time."""


class JobFailed(_NoResult):
    """The job has failed or was cancelled."""


class WaitForJob:
    """Waits for the job of one request."""

    def __init__(self, services: Services, response: Response) -> None:
        self._services = services
        self._headers = response.headers

    async def __call__(self, request: Awaitable[Job]) -> Job:
        """Await the request, and return its job when it has succeeded.

        Raises:
            JobStillRunning: the job has not ended after MAX_WAIT_SECONDS.
            JobFailed: the job has failed or was cancelled.
        """
        job = await self._accepted(request)
        # The job is already accepted: if the wait fails, the client must still learn its id.
        with suppress(Unavailable, NotFound):
            await self._services.watcher.ended(job.id, MAX_WAIT_SECONDS)
            job = await self._services.jobs.get(job.id)
        if not job.ended:
            raise JobStillRunning(job, self._headers)
        if job.status not in _SUCCESSFUL:
            raise JobFailed(job, self._headers)
        return job

    async def _accepted(self, request: Awaitable[Job]) -> Job:
        """Return the job of the request; for a repeated request, the job of the first one."""
        try:
            return await request
        except IdempotentReplay as replay:
            self._headers[REPLAYED] = "true"
            return await self._services.jobs.get(UUID(replay.body["id"]))


async def _wait_for_job(services: ServicesDep, response: Response) -> WaitForJob:
    return WaitForJob(services, response)


WaitForJobDep = Annotated[WaitForJob, Depends(_wait_for_job)]


def waits(*reasons: type[CisternError] | ProblemType) -> Responses:
    """Declare the responses of a route that waits for its job."""
    accepted: dict[str, Any] = ACCEPTED[202] | {
        "model": JobOut,
        "description": "The job has not ended in time: poll it.",
    }
    return {202: accepted} | errors(*reasons, JobNotFound, IdempotencyKeyReused, JOB_FAILED)


async def render_still_running(_: Request, error: Exception) -> Response:
    """Return the 202 of version 1, with the job to poll."""
    if not isinstance(error, JobStillRunning):
        raise error
    headers = {**job_location(str(error.job.id)), **error.headers}
    return JSONResponse(JobOut.from_row(error.job).model_dump(mode="json"), 202, headers)


async def render_failed(request: Request, error: Exception) -> Response:
    """Return a problem with the job's id and error."""
    if not isinstance(error, JobFailed):
        raise error
    job = error.job
    detail = (job.error or {}).get("detail") or f"The job was {job.status}."
    extensions = {"job_id": job.id, "job_status": job.status, "error": job.error}
    return problem_response(request, JOB_FAILED, detail, headers=error.headers, extensions=extensions)
