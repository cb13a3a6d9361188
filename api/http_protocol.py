"""The HTTP/1.1 protocol of `cistern serve`: uvicorn's, with limits on what a connection may hold and for how long.

uvicorn's parser reads headers of any size, waits for the rest of a request without end, and keeps a response for as
long as the client does not read it. A few such clients would take the memory or all descriptors of the process.
"""

import asyncio
import fcntl
import resource
import sys
import termios
from typing import ClassVar, Final

from uuid_utils.compat import uuid7
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from api.problems import (
    HEADERS_TOO_LARGE,
    MALFORMED_REQUEST,
    REQUEST_TIMEOUT,
    TOO_MANY_CONNECTIONS,
    ProblemType,
    build_problem,
)

#: Descriptors that connections leave to PostgreSQL, Redis, files and pipes.
RESERVED_DESCRIPTORS: Final = 200
_MAX_DESCRIPTORS: Final = 16_384


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open descriptors, often 1,024, as far as the hard one allows; return the new one."""
    soft, hard = (
        _MAX_DESCRIPTORS if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    wanted = max(soft, min(hard, _MAX_DESCRIPTORS))
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


class RefusedHead(Exception):
    """The headers are too large; raised inside the parser, which then stops."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection of a client.

    Deadlines are compared every `check_seconds`, because a timer per request costs more.
    """

    max_connections: ClassVar = 1_000
    max_head_bytes: ClassVar = 32 * 1024
    max_headers: ClassVar = 100
    #: Seconds from the first byte of a request, or from the start of the connection, to the end of the headers.
    head_seconds: ClassVar = 10.0
    #: Seconds from the end of the headers to the end of the body.
    body_seconds: ClassVar = 30.0
    #: Seconds after which a response that the client does not read is given up.
    write_seconds: ClassVar = 30.0
    check_seconds: ClassVar = 2.0

    #: Connections that wait for a complete request, the oldest first.
    _waiting: ClassVar[dict["LimitedHttpProtocol", None]] = {}

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._reading_head = True
        self._head_bytes = 0
        self._read_deadline: float | None = None
        self._unread = 0
        self._read_at = self.loop.time()
        self._check_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection. If there are too many, close the one that has waited longest for its client."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            if not self._waiting:
                self._refuse(TOO_MANY_CONNECTIONS, "All connections are in use; try again later.")
                return
            next(iter(self._waiting)).transport.abort()
        self._waiting[self] = None
        self._read_deadline = self.loop.time() + self.head_seconds
        self._check_timer = self.loop.call_later(self.check_seconds, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._waiting.pop(self, None)
        if self._check_timer is not None:
            self._check_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, unless the headers become too large."""
        if self._reading_head:
            self._head_bytes += len(data)
            if self._read_deadline is None:
                self._read_deadline = self.loop.time() + self.head_seconds
        super().data_received(data)
        if self._reading_head and self._head_bytes > self.max_head_bytes:  # no end in sight
            self._refuse_head()

    def on_headers_complete(self) -> None:
        """Start the request, unless its headers are too large.

        Raises:
            RefusedHead: they are.
        """
        self._reading_head = False
        self._read_deadline = self.loop.time() + self.body_seconds
        head_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if head_bytes > self.max_head_bytes or len(self.headers) > self.max_headers:
            self._refuse_head()
            raise RefusedHead
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the deadline: the request has arrived."""
        super().on_message_complete()
        self._waiting.pop(self, None)
        self._reading_head, self._head_bytes, self._read_deadline = True, 0, None

    def on_response_complete(self) -> None:
        """Wait for the next request, if there is none yet."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.cycle.response_complete:
            self._waiting[self] = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser does not understand."""
        self._refuse(MALFORMED_REQUEST, msg)

    def _check(self) -> None:
        """Close the connection if a deadline has passed."""
        now = self.loop.time()
        unread = self._unread_bytes()
        if not unread or unread < self._unread:
            self._read_at = now
        self._unread = unread
        if now - self._read_at > self.write_seconds:
            self.transport.abort()
            return
        if self._read_deadline is not None and now > self._read_deadline:
            if self.flow.read_paused:  # the application is behind, not the client
                self._read_deadline = now + self.body_seconds
            else:
                self._refuse(REQUEST_TIMEOUT, "The request did not arrive in time.")
                return
        self._check_timer = self.loop.call_later(self.check_seconds, self._check)

    def _unread_bytes(self) -> int:
        """Return how many bytes of responses the client has not received, if more wait than the kernel takes; else 0.

        Those in the kernel's buffer of some MiB count: it takes more only when a third of it is free.
        """
        waiting = self.transport.get_write_buffer_size()
        if not waiting:
            return 0
        count = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        return waiting + int.from_bytes(count, sys.byteorder)

    def _refuse_head(self) -> None:
        limits = f"{self.max_head_bytes // 1024} KiB and {self.max_headers} headers"
        self._refuse(HEADERS_TOO_LARGE, f"At most {limits} are allowed.")

    def _refuse(self, problem: ProblemType, detail: str) -> None:
        """Send a problem, unless a response has begun, and close the connection."""
        if self.transport.is_closing():
            return
        # uvicorn declares no None for `cycle`, but that is what it has before the first request.
        has_begun = getattr(self.cycle, "response_started", False) and not self.cycle.response_complete
        if not has_begun:
            response = build_problem(problem, detail, instance="", request_id=str(uuid7()))
            headers = (*response.raw_headers, (b"connection", b"close"))
            lines = [b"%b: %b\r\n" % header for header in headers]
            self.transport.write(b"".join((STATUS_LINE[problem.status], *lines, b"\r\n", response.body)))
        self.transport.close()
