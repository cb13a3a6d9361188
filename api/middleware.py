"""What surrounds every request and the start of the process; plain ASGI, because it must see what FastAPI hides."""

import re
from typing import Final

import structlog
from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils.compat import uuid7

from api.error_handlers import internal_error
from domain.errors import ConfigurationError, Unavailable
from domain.logs import speaking_of

REQUEST_ID: Final = "X-Request-ID"
MAX_BODY_BYTES: Final = 2**20
_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

log = structlog.get_logger(__name__)


class QuietStartup:
    """Says in one line why the process cannot start, where Starlette would show a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, except the traceback of a failed start."""
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        held: Message | None = None

        async def hold_failure(message: Message) -> None:
            nonlocal held
            if message["type"] == "lifespan.startup.failed":
                held = message
            else:
                await send(message)

        try:
            await self.app(scope, receive, hold_failure)
        except BaseException as error:
            if held is None:
                raise
            if not isinstance(error, ConfigurationError | Unavailable):
                await send(held)
                raise
            # Swallowed: the server has its line, and exits with a status that is not 0.
            await send({**held, "message": f"Cistern cannot start: {error}"})


class RequestContext:
    """Gives every request an id that its answer, its log lines and its problems carry; and has the last word."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer under the request's id, even when something breaks."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get(REQUEST_ID, ""))
        scope.setdefault("state", {})["request_id"] = request_id
        with speaking_of(request_id=request_id):
            await self._answer(scope, receive, _ResponseStarted(send, request_id))

    async def _answer(self, scope: Scope, receive: Receive, answer: "_ResponseStarted") -> None:
        try:
            await self.app(scope, receive, answer)
        except Exception:
            log.exception("request.failed", method=scope["method"], path=scope["path"])
            if answer.started:
                raise
            await internal_error(Request(scope))(scope, receive, answer)


class _ResponseStarted:
    """The way out, which signs what leaves and remembers that something has left."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            MutableHeaders(scope=message)[REQUEST_ID] = self._request_id
        await self._send(message)


class BodyLimit:
    """Refuses a body of more than a mebibyte as soon as somebody starts to read it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with a limit on what can be read of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("Content-Length", "")
        expected = int(declared) if declared.isdecimal() else 0
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            if expected > MAX_BODY_BYTES:
                raise HTTPException(413)
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY_BYTES:
                raise HTTPException(413)
            return message

        await self.app(scope, limited, send)


def _request_id(offered: str) -> str:
    return offered if _SANE_ID.fullmatch(offered) else str(uuid7())
