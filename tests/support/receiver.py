"""A receiver of webhooks on loopback, which answers as a test says and keeps what it was sent."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple

from standardwebhooks import Webhook


class Received(NamedTuple):
    """One request: its headers, with names in lower case, and its body."""

    headers: dict[str, str]
    body: bytes

    def verified(self, secret: str) -> dict[str, Any]:
        """Return the event, if the library of the standard accepts the signature.

        Raises:
            WebhookVerificationError: it does not.
        """
        event: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return event


#: The event loop accepts a connection in that many iterations. If the server is closed in between, asyncio leaves the
#: connection open.
_STEPS_TO_ACCEPT: Final = 3


class Receiver:
    """What was received, and what is answered: the ``answers`` in turn, then 204."""

    def __init__(self, answers: Iterable[str] = (), scheme: str = "http") -> None:
        self.requests: list[Received] = []
        self.port = 0
        self.scheme = scheme
        self.serving: set[asyncio.Task[None]] = set()
        self._answers = iter(answers)

    @property
    def url(self) -> str:
        """The URL of the receiver, with a query as real ones have it."""
        return f"{self.scheme}://127.0.0.1:{self.port}/hook?token=1"

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection."""
        self.serving.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one request; a client that gives up before it has sent its request has sent none."""
        try:
            with suppress(asyncio.IncompleteReadError):
                await self._receive(reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one request, keep it and answer; an empty answer is none, until the client has left."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.requests.append(Received({**headers, ":line": head[0]}, body))
        if answer := next(self._answers, "204 No Content"):
            writer.write(f"HTTP/1.1 {answer}\r\n\r\n".encode())
        else:
            await reader.read()


@asynccontextmanager
async def receiving(*answers: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Run a receiver while the block runs."""
    receiver = Receiver(answers, "http" if tls is None else "https")
    server = await asyncio.start_server(receiver.accept, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    async with server:
        yield receiver
        for _ in range(_STEPS_TO_ACCEPT):
            await asyncio.sleep(0)
        server.close()
        await server.wait_closed()
        await asyncio.gather(*receiver.serving)
