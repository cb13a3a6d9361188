"""A fast path for the three most frequent requests: poll a job, create a volume, expand a volume.

FastAPI spends more time on routing and dependencies than the rest of such a request takes. This middleware therefore
answers these requests itself if they have their usual, plain form. Everything else (a query, a preference, an
idempotency key, another spelling, a body that may be invalid) is passed on to the route, which is also what the OpenAPI
document describes. Both send the same bytes; a test compares them.
"""

import json
import re
from collections.abc import Awaitable, Sequence
from typing import Final, TypeVar
from uuid import UUID

from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dependencies import valid_caller
from api.error_handlers import render_error
from api.etag import matches
from api.idempotency import JOBS_PATH, job_location
from api.schemas.jobs import JobOut
from api.schemas.volumes import GrowthIn, VolumeIn
from api.v1.job_cache import EndedJobCache, render
from api.v1.routes import PREFIX
from api.v1.volumes import request_volume
from domain.errors import CisternError
from domain.jobs.acceptance import RequestOrigin
from domain.jobs.model import Job
from domain.services import Services

Parsed = TypeVar("Parsed", bound=BaseModel)
Headers = list[tuple[bytes, bytes]]

_ID: Final = "([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
_VOLUMES_PATH: Final = f"{PREFIX}/volumes"
_JOB: Final = re.compile(f"{JOBS_PATH}/{_ID}")
_EXPAND: Final = re.compile(f"{_VOLUMES_PATH}/{_ID}/expand")
#: Headers that change the meaning of a request.
_SLOW_PATH_HEADERS: Final = frozenset({b"prefer", b"idempotency-key"})
_MAX_BODY_BYTES: Final = 2**16


class FastPath:
    """Answers plain requests and passes all others on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._cache = EndedJobCache()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request or pass it on."""
        headers = _plain_headers(scope)
        if headers is not None and scope["method"] == "GET" and (job := _JOB.fullmatch(scope["path"])):
            await _respond(self._get_job(scope, job[1], headers.get(b"if-none-match")), scope, receive, send)
        elif headers is not None and scope["method"] == "POST" and headers.get(b"content-type") == b"application/json":
            await self._post(scope, receive, send, headers)
        else:
            await self.app(scope, receive, send)

    async def _get_job(self, scope: Scope, job_id: str, tags: bytes | None) -> "_Response":
        job = self._cache.get(job_id)
        if job is None:
            job = render(await _services(scope).jobs.get(UUID(job_id)))
            self._cache.put(job_id, job)
        if tags is not None and matches([tags.decode("latin-1")], job.tag):
            return _Response(304, job.headers)
        return _Response(200, job.headers, job.body)

    async def _post(self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes]) -> None:
        expand = _EXPAND.fullmatch(scope["path"])
        if not expand and scope["path"] != _VOLUMES_PATH:
            await self.app(scope, receive, send)
            return
        messages = await _receive_body(receive)
        services = _services(scope)
        origin = RequestOrigin(valid_caller(headers.get(b"x-cistern-caller", b"").decode("latin-1")))
        if expand and (growth := _parsed(GrowthIn, messages)):
            accepting = _expand(services, UUID(expand[1]), growth, origin)
        elif not expand and (volume := _parsed(VolumeIn, messages)):
            accepting = request_volume(volume, services.volumes, services.snapshots, origin)
        else:
            await self.app(scope, _replayed(messages, receive), send)
            return
        await _respond(_accepted(accepting), scope, receive, send)  # awaits it there, and renders its errors


class _Response:
    """The ASGI messages of a response."""

    def __init__(self, status: int, headers: Headers, body: bytes | None = None) -> None:
        """Build the messages; a ``body`` of None means that the status has no body."""
        entity = (
            [] if body is None else [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        )
        self.start: Message = {"type": "http.response.start", "status": status, "headers": [*entity, *headers]}
        self.body: Message = {"type": "http.response.body", "body": body or b""}


async def _respond(response: Awaitable[_Response], scope: Scope, receive: Receive, send: Send) -> None:
    """Send the response, or the problem that the route would send."""
    try:
        messages = await response
    except CisternError as error:
        problem = await render_error(Request(scope), error)
        await problem(scope, receive, send)
    else:
        await send(messages.start)
        await send(messages.body)


async def _accepted(request: Awaitable[Job]) -> _Response:
    job = await request
    headers = [(name.lower().encode(), value.encode()) for name, value in job_location(str(job.id)).items()]
    return _Response(202, headers, JobOut.from_row(job).model_dump_json().encode())


async def _expand(services: Services, volume_id: UUID, growth: GrowthIn, origin: RequestOrigin) -> Job:
    return await services.volumes.request_expand(volume_id, growth.growth(), origin=origin)


def _plain_headers(scope: Scope) -> dict[bytes, bytes] | None:
    """Return the headers of a plain request; None if it has a query, a repeated header or one for the slow path."""
    if scope["type"] != "http" or scope["query_string"] or scope.get("root_path"):
        return None
    headers = dict(scope["headers"])
    return None if len(headers) < len(scope["headers"]) or headers.keys() & _SLOW_PATH_HEADERS else headers


async def _receive_body(receive: Receive) -> list[Message]:
    """Receive the messages of a body, up to the first beyond _MAX_BODY_BYTES."""
    messages = [await receive()]
    while messages[-1].get("more_body") and len(_body(messages)) <= _MAX_BODY_BYTES:
        messages.append(await receive())
    return messages


def _replayed(messages: Sequence[Message], receive: Receive) -> Receive:
    """Return a `receive` that yields the messages received so far, and then the rest."""
    received = iter(messages)

    async def replay() -> Message:
        return next(received, None) or await receive()

    return replay


def _body(messages: Sequence[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in messages)


def _parsed(schema: type[Parsed], messages: Sequence[Message]) -> Parsed | None:
    """Parse a complete and valid body; None leaves everything else to the route, which reports the errors."""
    body, last = _body(messages), messages[-1]
    if last["type"] != "http.request" or last.get("more_body") or len(body) > _MAX_BODY_BYTES:
        return None
    try:
        return schema.model_validate(json.loads(body))
    except (ValueError, RecursionError):
        return None


def _services(scope: Scope) -> Services:
    services: Services = scope["app"].state.services
    return services
