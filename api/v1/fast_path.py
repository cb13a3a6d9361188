"""A short way for what is asked thousands of times a second: polls of a job, new volumes, larger volumes.

To find a route and to solve what it depends on takes FastAPI longer than everything else that such a request costs. So
what comes in the one plain form in which nearly all of them come is answered before. Whatever is unusual in any way (a
query, a wish, a key, another spelling, a value that may be wrong) goes the ordinary way, which is the one that the
document describes. Both answer alike, to the byte; a test compares them.
"""

import json
import re
from collections.abc import Awaitable, Sequence
from typing import Final, TypeVar
from uuid import UUID

from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dependencies import caller_of
from api.error_handlers import render_error
from api.etag import matches
from api.idempotency import JOBS_AT, job_location
from api.schemas.growth import GrowthIn
from api.schemas.requests import VolumeIn
from api.schemas.responses import JobOut
from api.v1.job_cache import EndedJobCache, render
from api.v1.routes import PREFIX
from api.v1.volumes import request_volume
from domain.errors import CisternError
from domain.jobs.idempotency import RequestOrigin
from domain.jobs.model import Job
from domain.services import Services

Parsed = TypeVar("Parsed", bound=BaseModel)
Headers = list[tuple[bytes, bytes]]

_ID: Final = "([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
_VOLUMES: Final = f"{PREFIX}/volumes"
_POLL: Final = re.compile(f"{JOBS_AT}/{_ID}")
_EXPAND: Final = re.compile(f"{_VOLUMES}/{_ID}/expand")
#: Headers that make a request another one.
_SLOW_PATH_HEADERS: Final = frozenset({b"prefer", b"idempotency-key"})
_MAX_BODY_BYTES: Final = 2**16


class FastPath:
    """Answers what is asked in the plain form, and passes everything else on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._ended = EndedJobCache()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on."""
        headers = _plain_headers(scope)
        if headers is not None and scope["method"] == "GET" and (poll := _POLL.fullmatch(scope["path"])):
            await _respond(self._poll(scope, poll[1], headers.get(b"if-none-match")), scope, receive, send)
        elif headers is not None and scope["method"] == "POST" and headers.get(b"content-type") == b"application/json":
            await self._post(scope, receive, send, headers)
        else:
            await self.app(scope, receive, send)

    async def _poll(self, scope: Scope, job_id: str, tags: bytes | None) -> "_Response":
        job = self._ended.recall(job_id)
        if job is None:
            job = render(await _services(scope).jobs.get(UUID(job_id)))
            self._ended.keep(job_id, job)
        if tags is not None and matches([tags.decode("latin-1")], job.tag):
            return _Response(304, job.headers)
        return _Response(200, job.headers, job.body)

    async def _post(self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes]) -> None:
        expand = _EXPAND.fullmatch(scope["path"])
        if not expand and scope["path"] != _VOLUMES:
            await self.app(scope, receive, send)
            return
        messages = await _receive_body(receive)
        services, origin = (
            _services(scope),
            RequestOrigin(caller_of(headers.get(b"x-cistern-caller", b"").decode("latin-1"))),
        )
        if expand and (wish := _parsed(GrowthIn, messages)):
            idempotent_transaction = _expand(services, UUID(expand[1]), wish, origin)
        elif not expand and (wanted := _parsed(VolumeIn, messages)):
            idempotent_transaction = request_volume(wanted, services.volumes, services.snapshots, origin)
        else:
            await self.app(scope, _replayed(messages, receive), send)
            return
        await _respond(_accepted(idempotent_transaction), scope, receive, send)


class _Response:
    """What is sent."""

    def __init__(self, status: int, headers: Headers, body: bytes | None = None) -> None:
        """No ``body``: the status has none."""
        said = [] if body is None else [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        self.start: Message = {"type": "http.response.start", "status": status, "headers": [*said, *headers]}
        self.body: Message = {"type": "http.response.body", "body": body or b""}


async def _respond(answer: Awaitable[_Response], scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, or say why not, as the ordinary way would."""
    try:
        found = await answer
    except CisternError as error:
        refusal = await render_error(Request(scope), error)
        await refusal(scope, receive, send)
    else:
        await send(found.start)
        await send(found.body)


async def _accepted(idempotent_transaction: Awaitable[Job]) -> _Response:
    job = await idempotent_transaction
    headers = [(name.lower().encode(), value.encode()) for name, value in job_location(str(job.id)).items()]
    return _Response(202, headers, JobOut.from_row(job).model_dump_json().encode())


def _plain_headers(scope: Scope) -> dict[bytes, bytes] | None:
    """Take the headers of a request, if there is nothing unusual about it; two of one name are."""
    if scope["type"] != "http" or scope["query_string"] or scope.get("root_path"):
        return None
    headers = dict(scope["headers"])
    return None if len(headers) < len(scope["headers"]) or headers.keys() & _SLOW_PATH_HEADERS else headers


async def _expand(services: Services, volume_id: UUID, body: GrowthIn, origin: RequestOrigin) -> Job:
    return await services.volumes.request_expand(volume_id, body.growth(), origin=origin)


async def _receive_body(receive: Receive) -> list[Message]:
    """Take what is sent: a whole body, unless it is unusually large."""
    messages = [await receive()]
    while messages[-1].get("more_body") and len(_body(messages)) <= _MAX_BODY_BYTES:
        messages.append(await receive())
    return messages


def _replayed(messages: Sequence[Message], receive: Receive) -> Receive:
    """Have what was taken received once more, and then the rest."""
    taken = iter(messages)

    async def again() -> Message:
        return next(taken, None) or await receive()

    return again


def _body(messages: Sequence[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in messages)


def _parsed(shape: type[Parsed], messages: Sequence[Message]) -> Parsed | None:
    """Read a body; None if there is anything to say about it, or it is not there as a whole."""
    body, last = _body(messages), messages[-1]
    if last["type"] != "http.request" or last.get("more_body") or len(body) > _MAX_BODY_BYTES:
        return None
    try:
        return shape.model_validate(json.loads(body))
    except (ValueError, RecursionError):
        return None


def _services(scope: Scope) -> Services:
    services: Services = scope["app"].state.services
    return services
