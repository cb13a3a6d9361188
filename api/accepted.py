"""The 202 response of an accepted job: `Location`, `Retry-After` and, with `Prefer: wait=N`, the state after a wait."""

from contextlib import suppress
from typing import Annotated

from fastapi import Depends, Response

from api.dependencies import ServicesDep, WaitDep
from api.idempotency import job_location
from api.schemas.jobs import JobOut
from domain.errors import NotFound, Unavailable
from domain.jobs.model import Job
from domain.services import Services


class AcceptedResponse:
    """Renders an accepted job."""

    def __init__(self, services: Services, wait_seconds: int | None, response: Response) -> None:
        self._services = services
        self._wait_seconds = wait_seconds
        self._headers = response.headers

    async def __call__(self, job: Job) -> JobOut:
        """Set the headers of an accepted job and render it, after the wait that the client prefers."""
        self._headers.update(job_location(str(job.id)))
        # The job is already accepted: if the wait fails, the client must still learn its id.
        with suppress(Unavailable, NotFound):
            job = await self.wait(job)
        return JobOut.from_row(job)

    async def wait(self, job: Job) -> Job:
        """Wait until a job has ended or the preferred time is over, and return its present state."""
        if self._wait_seconds is None:
            return job
        await self._services.watcher.ended(job.id, self._wait_seconds)
        job = await self._services.jobs.get(job.id)
        self._headers["Preference-Applied"] = f"wait={self._wait_seconds}"
        return job


async def _accepted_response(services: ServicesDep, wait_seconds: WaitDep, response: Response) -> AcceptedResponse:
    return AcceptedResponse(services, wait_seconds, response)


AcceptedDep = Annotated[AcceptedResponse, Depends(_accepted_response)]
