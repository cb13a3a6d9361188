"""The routes of the three most frequent requests in their plain form: poll a job, create a volume, expand a volume.

Most of the API's time for such a request would be FastAPI's own. So the route table begins with these routes, which
read a request by hand. They are routes like any other, behind the same middleware. A request in any other form (a
query, a preference, an idempotency key, a body that may be invalid) goes on to the route of FastAPI, which is also what
the OpenAPI document describes. Both send the same bytes; a test compares them.

``benchmarks/race.py api`` shows what they are worth: two to five times as many requests.
"""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar
from uuid import UUID

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dependencies import valid_caller
from api.etag import matches
from api.idempotency import JOBS_PATH, job_location
from api.schemas.jobs import JobOut
from api.schemas.volumes import GrowthIn, VolumeIn
from api.v1.job_cache import EndedJobCache, render
from api.v1.routes import PREFIX
from api.v1.volumes import request_volume
from domain.jobs.acceptance import RequestOrigin
from domain.jobs.model import Job
from domain.services import Services

Body = TypeVar("Body", bound=BaseModel)
#: Answers a plain request; None passes it on, to have its errors reported.
PlainEndpoint = Callable[[Request], Awaitable[ASGIApp | None]]

#: Headers that change the meaning of a request.
_UNUSUAL_HEADERS: Final = frozenset({b"prefer", b"idempotency-key"})
#: Set in the scope of a request that a hot route has passed on.
_PASSED_ON: Final = "cistern.passed_on"


class HotRoute(Route):
    """A route for plain requests, in front of the route for all of them."""

    def __init__(self, method: str, path: str, answer: PlainEndpoint) -> None:
        super().__init__(path, answer, methods=[method], include_in_schema=False)
        self.path_regex = re.compile(
            self.path_regex.pattern.removesuffix("$") + r"\Z"
        )  # `$` would allow a final newline
        self._method = method
        self._answer = answer

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the path of a plain request that was not passed on before."""
        if scope["type"] != "http" or scope["method"] != self._method or not _is_plain(scope):
            return Match.NONE, {}
        return super().matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on with all that was received of its body."""
        response: ASGIApp | None
        received: list[Message] = []

        async def receive_and_keep() -> Message:
            received.append(await receive())
            return received[-1]

        try:
            response = await self._answer(Request(scope, receive_and_keep))
        except ClientDisconnect:
            response = None
        if response is None:
            scope[_PASSED_ON] = True
            await scope["app"].router(scope, _replayed(received, receive), send)
        else:
            await response(scope, receive, send)


def install(app: FastAPI) -> None:
    """Put the hot routes in front of the route table."""
    app.router.routes[:0] = [
        HotRoute("GET", f"{JOBS_PATH}/{{job_id:hyphenated}}", _get_job),
        HotRoute("POST", f"{PREFIX}/volumes", _create_volume),
        HotRoute("POST", f"{PREFIX}/volumes/{{volume_id:hyphenated}}/expand", _expand_volume),
    ]


async def _get_job(request: Request) -> ASGIApp | None:
    """Return a job; one that has ended comes from the cache."""
    job_id, cache = request.path_params["job_id"], _cache(request)
    job = cache.get(job_id)
    if job is None:
        job = render(await _services(request).jobs.get(UUID(job_id)))
        cache.put(job_id, job)
    tags = request.headers.get("if-none-match")
    if tags is not None and matches([tags], job.tag):
        return _Response(304, None, job.headers)
    return _Response(200, job.body, job.headers)


async def _create_volume(request: Request) -> ASGIApp | None:
    """Accept a new volume."""
    body, services = await _valid_body(request, VolumeIn), _services(request)
    if body is None:
        return None
    return _accepted(await request_volume(body, services.volumes, services.snapshots, _origin(request)))


async def _expand_volume(request: Request) -> ASGIApp | None:
    """Accept a larger size for a volume."""
    body, volume_id = await _valid_body(request, GrowthIn), UUID(request.path_params["volume_id"])
    if body is None:
        return None
    volumes = _services(request).volumes
    return _accepted(await volumes.request_expand(volume_id, body.growth(), origin=_origin(request)))


def _is_plain(scope: Scope) -> bool:
    """Return whether a request has no query, no repeated header and none that changes its meaning."""
    names = {name for name, _ in scope["headers"]}
    plain = len(names) == len(scope["headers"]) and names.isdisjoint(_UNUSUAL_HEADERS)
    return plain and not scope["query_string"] and _PASSED_ON not in scope


def _replayed(messages: Sequence[Message], receive: Receive) -> Receive:
    """Return a `receive` that yields messages that were already received, and then what follows them."""
    received = iter(messages)

    async def replay() -> Message:
        return next(received, None) or await receive()

    return replay


async def _valid_body(request: Request, schema: type[Body]) -> Body | None:
    """Parse a valid JSON body; None if it is anything else."""
    if request.headers.get("content-type") != "application/json":
        return None
    try:
        return schema.model_validate(json.loads(await request.body()))
    except (ValueError, RecursionError):
        return None


def _accepted(job: Job) -> ASGIApp:
    headers = [(name.lower().encode(), value.encode()) for name, value in job_location(str(job.id)).items()]
    return _Response(202, JobOut.from_row(job).model_dump_json().encode(), headers)


class _Response:
    """The messages of a response with a body of JSON, or without any; half the work of Starlette's `Response`."""

    def __init__(self, status: int, body: bytes | None, headers: list[tuple[bytes, bytes]]) -> None:
        if body is not None:
            headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json"), *headers]
        self._start: Message = {"type": "http.response.start", "status": status, "headers": [*headers]}
        self._body: Message = {"type": "http.response.body", "body": body or b""}

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        await send(self._start)
        await send(self._body)


def _origin(request: Request) -> RequestOrigin:
    return RequestOrigin(valid_caller(request.headers.get("x-cistern-caller")))


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _cache(request: Request) -> EndedJobCache:
    cache: EndedJobCache = request.app.state.ended_jobs
    return cache
