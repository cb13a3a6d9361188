"""The gate: the one ASGI layer that every request passes before any route is looked up.

Plain ASGI, because FastAPI's own middleware sees neither the start-up nor the raw `receive` and `send` of a request.
"""

import asyncio
import re
from typing import Final

import structlog
from fastapi import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, reset_contextvars
from uuid_utils import uuid7

from api.access import AccessRefused, admit
from api.body_limits import max_body_kib
from api.error_handlers import internal_error, render_access_refused
from api.http_metrics import counted
from api.problems import RATE_LIMITED, problem_response, type_of
from api.rate_limits import RateLimiter, weight_of
from api.request_headers import RequestHeaders, read_headers
from api.request_spans import traced
from api.security_headers import RawHeaders, security_headers
from api.sites import site_refusal
from domain import metrics, tracing
from domain.access.model import Principal
from domain.errors import ConfigurationError, DatabaseUnavailable, Unavailable
from domain.services import Services
from domain.tasks import cancel_and_wait

REQUEST_ID: Final = "X-Request-ID"
_REQUEST_ID_HEADER: Final = REQUEST_ID.lower().encode()
_VALID_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")

log = structlog.get_logger(__name__)


class Gate:
    """Stands before the whole route table: no route can be added that is reached without passing it.

    1. Every request gets an id, for its response, log lines and problems.
    2. An unhandled error becomes a 500 and a log line.
    3. A request for a host that is not allowed, or from a page of another site, is refused.
    4. A request without a key that may use the route is refused; `state.principal` has who it acts for.
    5. A request of a caller that is beyond the rate limit is refused.
    6. HEAD is answered as GET, without the body.
    7. A body that is too large for the route is rejected with 413, when the application reads it.
    8. An expected start-up failure is reported in one line.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request or the lifespan on to the application."""
        if scope["type"] == "http":
            tracer = tracing.tracer()
            send = counted(scope, send) if metrics.current().is_on else send
            if tracer is None:
                await self._request(scope, receive, send)
            else:
                await traced(tracer, self._request, scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = read_headers(scope)
        request_id = _request_id(headers)
        scope.setdefault("state", {}).update(headers=headers, request_id=request_id)
        response = _Response(send, (*security_headers(scope["path"]), (_REQUEST_ID_HEADER, request_id.encode())))
        bound = bind_contextvars(request_id=request_id)
        try:
            if refusal := await _refusal(scope, headers, response):
                await refusal(scope, receive, response.send)
            elif scope["method"] == "GET":  # no route reads the body of a GET
                await self.app(scope, receive, response.send)
            elif scope["method"] == "HEAD":
                await _head_as_get(self.app, scope, receive, response.send)
            else:
                await self.app(scope, _limited(scope, headers, receive), response.send)
        except Exception:
            log.exception("request.failed", method=scope["method"], path=scope["path"])
            if response.started:
                raise
            await internal_error(Request(scope))(scope, receive, response.send)
        finally:
            reset_contextvars(**bound)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass every message on, except the traceback of an expected start-up failure."""
        failure: Message | None = None

        async def hold_failure(message: Message) -> None:
            nonlocal failure
            if message["type"] == "lifespan.startup.failed":
                failure = message
            else:
                await send(message)

        try:
            await self.app(scope, receive, hold_failure)
        except BaseException as error:
            if failure is None:
                raise
            if not isinstance(error, ConfigurationError | Unavailable):
                await send(failure)
                raise
            # Not raised again: the server logs the message and exits with a non-zero status.
            await send({**failure, "message": f"Cistern cannot start: {error}"})


class _Response:
    """Wraps `send`: adds headers that every response has, and records that the response has started."""

    def __init__(self, send: Send, headers: RawHeaders) -> None:
        self._send = send
        self.headers = headers
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message["headers"], *self.headers]
        await self._send(message)


async def _refusal(scope: Scope, headers: RequestHeaders, response: _Response) -> Response | None:
    """Return the response to a request that may not pass; set the principal of one that may."""
    services: Services = scope["app"].state.services
    refused: Response | None = None
    try:
        if refusal := site_refusal(scope, headers, services.settings.hosts):
            refused = problem_response(Request(scope), *refusal)
        else:
            await admit(scope, headers, services)
    except AccessRefused as error:
        refused = await render_access_refused(Request(scope), error)
    except DatabaseUnavailable as error:  # unlike one of a route, it comes before anything can have been accepted
        return problem_response(Request(scope), type_of(DatabaseUnavailable), error.message)
    limiter: RateLimiter | None = scope["app"].state.rate_limiter
    return refused if limiter is None else _rate_limited(scope, limiter, response) or refused


def _rate_limited(scope: Scope, limiter: RateLimiter, response: _Response) -> Response | None:
    """Return the response to a request beyond the rate limit; add the headers that say what its caller has left."""
    weight = weight_of(scope["method"], scope["path"])
    if not weight:
        return None
    principal: Principal | None = scope["state"].get("principal")
    peer = scope.get("client")
    caller = principal.key_id if principal else str(peer and peer[0])
    decision = limiter.spend(caller, weight, project=principal.counted_project if principal else None)
    response.headers = (*response.headers, *limiter.headers(decision))
    if decision.allowed:
        return None
    detail = f"This request takes {weight} units, and {decision.remaining} are left; try again in {decision.seconds} s."
    retry_after = {"Retry-After": str(decision.seconds)}
    return problem_response(Request(scope), RATE_LIMITED, detail, headers=retry_after)


def _request_id(headers: RequestHeaders) -> str:
    """Return the id that the client has given to the request, if it is valid; else a new one."""
    given = headers.get(_REQUEST_ID_HEADER)
    return str(given, "ascii") if given is not None and _VALID_ID.fullmatch(given) else str(uuid7())


async def _head_as_get(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Pass a HEAD request on as a GET; end the response with its headers, also that of a stream."""
    answered = asyncio.Event()

    async def receive_until_answered() -> Message:
        if answered.is_set():
            return {"type": "http.disconnect"}
        receiving = asyncio.ensure_future(receive())
        answering = asyncio.ensure_future(answered.wait())
        try:
            await asyncio.wait((receiving, answering), return_when=asyncio.FIRST_COMPLETED)
            return receiving.result() if receiving.done() else {"type": "http.disconnect"}
        finally:
            await cancel_and_wait((receiving, answering))

    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b""})
            answered.set()
        elif message.get("more_body"):
            raise OSError("a response to HEAD has no body")  # Starlette ends a stream whose client has gone

    await app({**scope, "method": "GET"}, receive_until_answered, send_headers)


def _limited(scope: Scope, headers: RequestHeaders, receive: Receive) -> Receive:
    """Return a `receive` that raises 413 once the body is, or is declared to be, too large."""
    max_kib = max_body_kib(scope["method"], scope["path"])
    max_bytes = max_kib * 1024
    too_large = HTTPException(413, f"The body is larger than {max_kib} KiB.")
    declared = headers.get(b"content-length", b"")
    body_bytes = int(declared) if declared.isdigit() else 0
    if body_bytes <= max_bytes:
        body_bytes = 0  # count what really comes

    async def receive_limited() -> Message:
        nonlocal body_bytes
        if body_bytes > max_bytes:
            raise too_large
        message = await receive()
        body_bytes += len(message.get("body", b""))
        if body_bytes > max_bytes:
            raise too_large
        return message

    return receive_limited
