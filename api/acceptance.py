"""How a request that creates something is accepted: its caller, its `Idempotency-Key`, its response and `Prefer: wait`.

A request is carried out once per key; a repeated request gets the stored response.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext, suppress
from typing import Annotated, Final
from uuid import UUID

from fastapi import Depends, Header, Request, Response
from pydantic import StringConstraints
from starlette.responses import JSONResponse

from api.dependencies import V1_PATH, PrincipalDep, ServicesDep, actor_of
from api.held_requests import holding
from api.problems import RETRY_SECONDS
from api.schemas.base import Omittable, TextHeader
from api.schemas.jobs import JobOut
from api.schemas.schedules import ScheduleOut
from domain.db.base import Entity
from domain.errors import NotFound, Unavailable
from domain.jobs.acceptance import IdempotentReplay, IdempotentRequest, RequestOrigin
from domain.jobs.attempt import Payload
from domain.jobs.model import Job
from domain.schedules.model import Schedule
from domain.services import Services
from domain.tasks import cancel_and_wait

JOBS_PATH: Final = f"{V1_PATH}/jobs"
SCHEDULES_PATH: Final = f"{V1_PATH}/schedules"
REPLAYED: Final = "Idempotency-Replayed"
MAX_WAIT_SECONDS: Final = 30

_CREATED: Final = 201
_ACCEPTED: Final = 202

#: A valid body has no more: ten thousand ids, and 64 labels whose values consist of commas.
_MAX_COMMAS: Final = 30_000

#: Printable ASCII without surrounding spaces, which HTTP does not count as part of a header's value.
_KEY: Final = r"^[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?$"
_WAIT: Final = re.compile(r'wait\s*=\s*("?)([0-9]{1,9})\1', re.IGNORECASE | re.ASCII)


async def _origin(
    request: Request,
    principal: PrincipalDep,
    idempotency_key: Annotated[
        Omittable[Annotated[str, StringConstraints(pattern=_KEY)]],
        Header(
            alias="Idempotency-Key",
            description="Up to 255 ASCII characters that identify this request. If the same user "
            "sends the same request with the same key within 24 hours, it is not carried out again: the first response "
            "is returned.",
        ),
    ] = None,
) -> RequestOrigin:
    actor = actor_of(request.scope, principal)
    if idempotency_key is None:
        return RequestOrigin(actor)
    # The route is the concrete path: one key never acts on two resources.
    route = f"{request.method} {request.url.path}"
    fingerprint = _fingerprint(await request.body())
    return RequestOrigin(actor, IdempotentRequest(idempotency_key, route, fingerprint, _render_response))


OriginDep = Annotated[RequestOrigin, Depends(_origin)]


def _fingerprint(body: bytes) -> str:
    """Hash the meaning of a body: white space and the order of members make no difference."""
    # A body that is not JSON is hashed as it is, because some routes read none; so is one that has more elements than
    # any route accepts, because sorting them takes long.
    if body.count(b",") <= _MAX_COMMAS:
        with suppress(ValueError, RecursionError):
            body = json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(body).hexdigest()


def _render_response(created: Entity) -> tuple[int, Payload]:
    match created:
        case Job():
            return _ACCEPTED, JobOut.from_row(created).model_dump(mode="json")
        case Schedule():
            return _CREATED, ScheduleOut.from_row(created).model_dump(mode="json")
    raise TypeError(f"no response is defined for a {type(created).__name__}")


async def render_replay(_: Request, replay: IdempotentReplay) -> Response:
    """Return the stored response of the first request."""
    created_id = str(replay.body["id"])
    location = (
        {"Location": f"{SCHEDULES_PATH}/{created_id}"} if replay.status == _CREATED else accepted_headers(created_id)
    )
    return JSONResponse(replay.body, replay.status, {**location, REPLAYED: "true"})


def accepted_headers(job_id: str) -> dict[str, str]:
    """Return the headers with the URL of an accepted job and the delay before the first poll."""
    return {"Location": f"{JOBS_PATH}/{job_id}", "Retry-After": str(RETRY_SECONDS)}


def preferred_wait(prefer: Sequence[str]) -> int | None:
    """Return how many seconds the response may be delayed until the job has ended, at most MAX_WAIT_SECONDS.

    The argument has all `Prefer` headers of a request. As RFC 7240 demands, the first of several `wait` preferences
    counts, and an invalid one is ignored.
    """
    for preference in ",".join(prefer).split(","):
        if match := _WAIT.fullmatch(preference.partition(";")[0].strip()):
            return min(int(match[2]), MAX_WAIT_SECONDS)
    return None


async def wait_for_end(request: Request, services: Services, job_id: UUID, seconds: float) -> None:
    """Wait until the job has ended or is gone, for at most ``seconds``, or until the client has left."""
    waiting = asyncio.ensure_future(services.watcher.ended(job_id, seconds))
    leaving = asyncio.ensure_future(_client_left(request))
    try:
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            await waiting
    finally:
        await cancel_and_wait((waiting, leaving))


async def _client_left(request: Request) -> None:
    """Wait until the client has closed the connection; what is left of the body is dropped."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class AcceptedResponse:
    """The 202 response of an accepted job; with `Prefer: wait=N`, it has the job's state after a wait."""

    def __init__(self, request: Request, services: Services, wait_seconds: int | None, response: Response) -> None:
        self._request = request
        self._services = services
        self._wait_seconds = wait_seconds
        self._headers = response.headers

    async def __call__(self, job: Job) -> JobOut:
        """Set the headers of an accepted job and render it, after the wait that the client prefers."""
        self._headers.update(accepted_headers(str(job.id)))
        # The job is already accepted: if the wait fails, the client must still learn its id.
        with suppress(Unavailable, NotFound):
            job = await self.wait(job)
        return JobOut.from_row(job)

    async def wait(self, job: Job) -> Job:
        """Wait until a job has ended or the preferred time is over, and return its present state."""
        if self._wait_seconds is None:
            return job
        await wait_for_end(self._request, self._services, job.id, self._wait_seconds)
        job = await self._services.jobs.get(job.id, project_id=job.project_id)
        self._headers["Preference-Applied"] = f"wait={self._wait_seconds}"
        return job


async def _accepted_response(
    request: Request,
    services: ServicesDep,
    response: Response,
    prefer: Annotated[
        TextHeader[list[str]],
        Header(description="`wait=N` delays the response until the job has ended, for at most N seconds (max. 30)."),
    ] = None,
) -> AsyncIterator[AcceptedResponse]:
    seconds = preferred_wait(prefer or [])
    held = nullcontext() if seconds is None else holding(request)
    with held:
        yield AcceptedResponse(request, services, seconds, response)


AcceptedDep = Annotated[AcceptedResponse, Depends(_accepted_response)]
