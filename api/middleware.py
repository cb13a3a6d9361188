"""ASGI middleware around every request and around start-up.

Plain ASGI, because FastAPI's own middleware sees neither the start-up nor the raw `receive` and `send` of a request.
"""

import asyncio
import re
from typing import Final

import structlog
from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars
from uuid_utils.compat import uuid7

from api.error_handlers import internal_error
from domain.errors import ConfigurationError, Unavailable
from domain.tasks import cancel_and_wait

REQUEST_ID: Final = "X-Request-ID"
MAX_BODY_BYTES: Final = 2**20
_VALID_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

log = structlog.get_logger(__name__)


class QuietStartup:
    """Reports an expected start-up failure in one line; Starlette would report a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass every message on, except the traceback of an expected start-up failure."""
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
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


class RequestContext:
    """Gives every request an id for its response, log lines and problems, and turns unhandled errors into a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request with its id bound to all log lines."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get(REQUEST_ID, ""))
        scope.setdefault("state", {})["request_id"] = request_id
        with bound_contextvars(request_id=request_id):
            await self._respond(scope, receive, _ResponseSender(send, request_id))

    async def _respond(self, scope: Scope, receive: Receive, send: "_ResponseSender") -> None:
        try:
            await self.app(scope, receive, send)
        except Exception:
            log.exception("request.failed", method=scope["method"], path=scope["path"])
            if send.started:
                raise
            await internal_error(Request(scope))(scope, receive, send)


class _ResponseSender:
    """Wraps `send`: adds the request id header and records that the response has started."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            MutableHeaders(scope=message)[REQUEST_ID] = self._request_id
        await self._send(message)


class HeadAsGet:
    """Answers HEAD as GET, without the body, on every route."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a HEAD request on as a GET; end the response with its headers, also that of a stream."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
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

        await self.app({**scope, "method": "GET"}, receive_until_answered, send_headers)


class BodyLimit:
    """Rejects a body of more than 1 MiB with 413, when the application reads it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a limited `receive`."""
        if scope["type"] != "http" or scope["method"] == "GET":  # no route reads the body of a GET
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("Content-Length", "")
        declared_bytes = int(declared) if declared.isdecimal() else 0
        received_bytes = 0

        async def limited() -> Message:
            nonlocal received_bytes
            if declared_bytes > MAX_BODY_BYTES:
                raise HTTPException(413)
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > MAX_BODY_BYTES:
                raise HTTPException(413)
            return message

        await self.app(scope, limited, send)


def _request_id(offered: str) -> str:
    return offered if _VALID_ID.fullmatch(offered) else str(uuid7())
