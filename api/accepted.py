"""How a request that became a job is answered: 202, where to look, and when; with patience if the client has it."""

from contextlib import suppress
from typing import Annotated

from fastapi import Depends, Response

from api.dependencies import ServicesDep, WaitDep
from api.idempotency import job_location
from api.schemas.responses import JobOut
from domain.errors import NotFound, Unavailable
from domain.jobs.model import Job
from domain.services import Services


class AcceptedResponse:
    """Turns an accepted job into the answer."""

    def __init__(self, services: Services, wait: int | None, response: Response) -> None:
        self._services = services
        self._wait = wait
        self._headers = response.headers

    async def __call__(self, job: Job) -> JobOut:
        """Say where the job is, after waiting for its end if that was asked for."""
        self._headers.update(job_location(str(job.id)))
        # The job is accepted: whatever happens to the waiting, the client must learn its id.
        with suppress(Unavailable, NotFound):
            job = await self.after_waiting(job)
        return JobOut.from_row(job)

    async def after_waiting(self, job: Job) -> Job:
        """Hold a job until it has ended or the client's patience is over; returns it as it is then."""
        if self._wait is None:
            return job
        await self._services.watcher.ended(job.id, self._wait)
        job = await self._services.jobs.get(job.id)
        self._headers["Preference-Applied"] = f"wait={self._wait}"
        return job


async def _accepted_response(services: ServicesDep, wait: WaitDep, response: Response) -> AcceptedResponse:
    return AcceptedResponse(services, wait, response)


AcceptedDep = Annotated[AcceptedResponse, Depends(_accepted_response)]
