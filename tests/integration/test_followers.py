"""Many clients follow a job over real connections and leave in the middle: the API keeps nothing of them."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext

import pytest
import uvicorn

from api import held_requests
from api.main import create_app
from domain.services import Services
from tests.integration.job_builders import a_queued_expand, sql, until
from tests.support.keys import BEARER
from tests.support.servers import serving

FOLLOWERS = int(os.environ.get("CISTERN_TEST_FOLLOWERS", "500"))


@pytest.fixture
async def server(services: Services) -> AsyncIterator[uvicorn.Server]:
    """The API on a free port, in this process."""
    async with serving(create_app(lambda: nullcontext(services))) as server:
        yield server


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def follow_and_leave(port: int, path: str, bytes_read: int) -> None:
    """Open a stream, leave after so many bytes of the response, at once if it is 0."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {BEARER['Authorization']}\r\n\r\n".encode())
    await writer.drain()
    if bytes_read:
        await reader.readexactly(bytes_read)
    writer.transport.abort()


@pytest.mark.usefixtures("no_garbage_collection")
async def test_followers_that_leave_in_the_middle_leave_no_watch_connection_or_transaction(
    services: Services, server: uvicorn.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_requests, "_MAX_PER_CALLER", FOLLOWERS)
    monkeypatch.setattr(held_requests, "_MAX_HELD", FOLLOWERS)
    job = await a_queued_expand(services)
    path, port = f"/api/v1/jobs/{job.id}/events", server.servers[0].sockets[0].getsockname()[1]
    for first in range(0, FOLLOWERS, 100):
        numbers = range(first, min(first + 100, FOLLOWERS))
        await asyncio.gather(*(follow_and_leave(port, path, 50 * (number % 10)) for number in numbers))

    async def has_no_connection() -> bool:
        return not server.server_state.connections and not server.server_state.tasks

    await until(has_no_connection)
    assert services.watcher._watched == {}
    assert services.database._engine.pool.status().endswith("Current Checked out connections: 0")
    open_transactions = "SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    assert await sql(services, open_transactions) == []
