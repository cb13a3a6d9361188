"""Submit, wait, and go on when the job has ended; a job that takes longer than the client is held is answered as v1."""

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
from api.schemas.responses import JobOut
from domain.errors import CisternError, IdempotencyKeyReused, JobNotFound, NotFound, Unavailable
from domain.jobs.idempotency import IdempotentReplay
from domain.jobs.model import Job
from domain.jobs.states import JobStatus
from domain.services import Services

_DONE: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.PARTIAL})


class _Unfinished(Exception):
    """What a route would have answered with is not there."""

    def __init__(self, job: Job, headers: Mapping[str, str]) -> None:
        super().__init__(str(job.id))
        self.job = job
        self.headers = headers


class JobStillRunning(_Unfinished):
    """The job takes longer than the client is held."""


class JobFailed(_Unfinished):
    """The job has ended, but did not do what it was for."""


class WaitForJob:
    """Waits for the end of jobs on behalf of one request."""

    def __init__(self, services: Services, response: Response) -> None:
        self._services = services
        self._headers = response.headers

    async def __call__(self, idempotent_transaction: Awaitable[Job]) -> Job:
        """Have a job accepted, and bring it back when it has done what it was for.

        Raises:
            StillAtWork: it takes longer than that.
            Failed: it has failed, or was cancelled.
        """
        job = await self._accepted(idempotent_transaction)
        # The job is accepted: whatever happens to the waiting, the client must learn its id.
        with suppress(Unavailable, NotFound):
            await self._services.watcher.ended(job.id, MAX_WAIT_SECONDS)
            job = await self._services.jobs.get(job.id)
        if not job.ended:
            raise JobStillRunning(job, self._headers)
        if job.status not in _DONE:
            raise JobFailed(job, self._headers)
        return job

    async def _accepted(self, idempotent_transaction: Awaitable[Job]) -> Job:
        """A request that was accepted before waits for the end of the job that it became then."""
        try:
            return await idempotent_transaction
        except IdempotentReplay as before:
            self._headers[REPLAYED] = "true"
            return await self._services.jobs.get(UUID(before.body["id"]))


async def _wait_for_job(services: ServicesDep, response: Response) -> WaitForJob:
    return WaitForJob(services, response)


FinishedDep = Annotated[WaitForJob, Depends(_wait_for_job)]


def waits(*reasons: type[CisternError] | ProblemType) -> Responses:
    """Declare that a route waits for its job, which may fail or take longer, and why it may refuse."""
    accepted: dict[str, Any] = ACCEPTED[202] | {"model": JobOut, "description": "It takes longer: this is the job."}
    return {202: accepted} | errors(*reasons, JobNotFound, IdempotencyKeyReused, JOB_FAILED)


async def render_still_running(_: Request, error: Exception) -> Response:
    """Answer as version 1 does: here is the job, ask again."""
    if not isinstance(error, JobStillRunning):
        raise error
    headers = {**job_location(str(error.job.id)), **error.headers}
    return JSONResponse(JobOut.from_row(error.job).model_dump(mode="json"), 202, headers)


async def render_failed(request: Request, error: Exception) -> Response:
    """Say which job failed, and why."""
    if not isinstance(error, JobFailed):
        raise error
    job = error.job
    detail = (job.error or {}).get("detail") or f"The job was {job.status}."
    extensions = {"job_id": job.id, "job_status": job.status, "error": job.error}
    return problem_response(request, JOB_FAILED, detail, headers=error.headers, extensions=extensions)
