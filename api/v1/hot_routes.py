"""The routes of the three most frequent requests in their plain form: poll a job, create a volume, expand a volume.

Most of the API's time for such a request would be FastAPI's own. So the routes of this table are looked up first, and
read a request by hand. Like FastAPI's they stand behind the gate. A request in any other form (a query, a preference,
an idempotency key, a body that may be invalid) goes on to FastAPI's route, which is also what the OpenAPI document
describes. Both send the same bytes; a test compares them.

``benchmarks/race.py api`` shows what they are worth: two to five times as many requests.
"""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, TypeVar
from uuid import UUID

from fastapi import HTTPException
from pydantic import BaseModel
from starlette.datastructures import State
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.acceptance import JOBS_PATH, accepted_headers
from api.dependencies import V1_PATH, actor_of
from api.error_handlers import render_error
from api.etag import matches
from api.request_headers import RequestHeaders
from api.schemas.jobs import JobOut
from api.schemas.volumes import GrowthIn, VolumeIn
from api.v1.job_cache import EndedJobCache, render
from api.v1.volumes import request_volume
from domain.access.model import Principal
from domain.errors import CisternError
from domain.jobs.acceptance import RequestOrigin
from domain.jobs.model import Job
from domain.services import Services

Body = TypeVar("Body", bound=BaseModel)

#: Headers that change the meaning of a request.
_UNUSUAL_HEADERS: Final = frozenset({b"prefer", b"idempotency-key"})
_ID: Final = "([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"


class PlainRequest(NamedTuple):
    """A request without a query, a repeated header, or a header that changes its meaning."""

    scope: Scope
    headers: RequestHeaders
    receive: Receive

    @property
    def state(self) -> State:
        """The state of the application."""
        state: State = self.scope["app"].state
        return state

    @property
    def services(self) -> Services:
        """The services of the application."""
        services: Services = self.state.services
        return services

    @property
    def principal(self) -> Principal:
        """Who it acts for."""
        principal: Principal = self.scope["state"]["principal"]
        return principal

    @property
    def origin(self) -> RequestOrigin:
        """Who sent it."""
        return RequestOrigin(actor_of(self.scope, self.principal))

    async def valid_body(self, schema: type[Body]) -> Body | None:
        """Parse a valid JSON body; None if it is anything else."""
        if self.headers.get(b"content-type") != b"application/json":
            return None
        body, more = b"", True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            return schema.model_validate(json.loads(body))
        except (ValueError, RecursionError):
            return None


class PlainResponse(NamedTuple):
    """A response with a body of JSON, or without any."""

    status: int
    body: bytes | None
    headers: list[tuple[bytes, bytes]]

    async def send(self, send: Send) -> None:
        """Send it; half the work of Starlette's `Response`."""
        headers = self.headers
        if self.body is not None:
            length = b"%d" % len(self.body)
            headers = [(b"content-length", length), (b"content-type", b"application/json"), *headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body or b""})


class HotRoutes:
    """The table of hot routes, in front of FastAPI's; a request that none of them answers goes on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on with all that was received of its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received: list[Message] = []

        async def receive_and_keep() -> Message:
            received.append(await receive())
            return received[-1]

        async def receive_again() -> Message:
            return received.pop(0) if received else await receive()

        try:
            response = await _answer(scope, receive_and_keep)
        except CisternError as error:
            await (await render_error(Request(scope), error))(scope, receive, send)
            return
        except (ClientDisconnect, HTTPException):  # raised again where FastAPI reads the body
            response = None
        if response is None:
            await self.app(scope, receive_again, send)
        else:
            await response.send(send)


async def _answer(scope: Scope, receive: Receive) -> PlainResponse | None:
    """Answer a plain request for a hot route; None if it is another, or has errors to be reported."""
    for method, path, endpoint in HOT_ROUTES:
        if scope["method"] == method and (found := path.fullmatch(scope["path"])):
            headers: RequestHeaders = scope["state"]["headers"]
            if (
                scope["query_string"]
                or len(headers) != len(scope["headers"])
                or not _UNUSUAL_HEADERS.isdisjoint(headers)
            ):
                return None
            return await endpoint(PlainRequest(scope, headers, receive), *found.groups())
    return None


async def _get_job(request: PlainRequest, job_id: str) -> PlainResponse | None:
    """Return a job; one that has ended comes from the cache."""
    cache: EndedJobCache = request.state.ended_jobs
    project_id = request.principal.project.id
    job = cache.get(project_id, job_id)
    if job is None:
        job = render(await request.services.jobs.get(UUID(job_id), project_id=project_id))
        cache.put(project_id, job_id, job)
    tags = request.headers.get(b"if-none-match")
    if tags is not None and matches([tags.decode("latin-1")], job.tag):
        return PlainResponse(304, None, job.headers)
    return PlainResponse(200, job.body, job.headers)


async def _create_volume(request: PlainRequest) -> PlainResponse | None:
    """Accept a new volume."""
    body, services = await request.valid_body(VolumeIn), request.services
    if body is None:
        return None
    return _accepted(await request_volume(services, body, request.origin))


async def _expand_volume(request: PlainRequest, volume_id: str) -> PlainResponse | None:
    """Accept a larger size for a volume."""
    body, volumes = await request.valid_body(GrowthIn), request.services.volumes
    if body is None:
        return None
    return _accepted(await volumes.request_expand(UUID(volume_id), body.growth(), origin=request.origin))


def _accepted(job: Job) -> PlainResponse:
    headers = [(name.lower().encode(), value.encode()) for name, value in accepted_headers(str(job.id)).items()]
    return PlainResponse(202, JobOut.from_row(job).model_dump_json().encode(), headers)


#: Method, path, and what answers. An endpoint gets the request and the groups of the path.
HOT_ROUTES: Final[Sequence[tuple[str, re.Pattern[str], Callable[..., Awaitable[PlainResponse | None]]]]] = (
    ("GET", re.compile(f"{JOBS_PATH}/{_ID}"), _get_job),
    ("POST", re.compile(f"{V1_PATH}/volumes"), _create_volume),
    ("POST", re.compile(f"{V1_PATH}/volumes/{_ID}/expand"), _expand_volume),
)
