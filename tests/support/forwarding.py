"""One address of TCP that leads to one server or another, as a load balancer does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

#: The port of a server on 127.0.0.1, or its socket.
Place = int | Path


class Forwarder:
    """Where new connections lead to; those that are open stay where they led to when they were opened."""

    def __init__(self, leads_to: Place) -> None:
        self.leads_to = leads_to
        self.port = 0
        self._connections: set[asyncio.Task[object]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with await asyncio.start_server(self._forward, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            other, to_other = await _connect(self.leads_to)
            await asyncio.gather(_copy(reader, to_other), _copy(other, writer))
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._connections.discard(task)


@asynccontextmanager
async def forwarder(leads_to: Place) -> AsyncIterator[Forwarder]:
    """Open an address that leads to this place at first."""
    forwarder = Forwarder(leads_to)
    async with forwarder.open():
        yield forwarder


async def _connect(place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(place, Path):
        return await asyncio.open_unix_connection(str(place))
    return await asyncio.open_connection("127.0.0.1", place)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()
