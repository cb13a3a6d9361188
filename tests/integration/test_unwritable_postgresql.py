"""PostgreSQL answers, but nothing can be committed: requests end in time, probes say so, and all is well afterwards."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest

from domain.embedded import EmbeddedServers
from domain.services import Services, open_services
from domain.settings import Settings
from tests.integration.job_builders import sql
from tests.support.databases import run

TIMEOUT_SECONDS = 3.0
Outage = Callable[[EmbeddedServers], AbstractAsyncContextManager[None]]


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[Services]:
    short = settings.model_copy(update={"database_timeout_seconds": TIMEOUT_SECONDS})
    async with open_services(short, adopt=True) as services, services.watcher.watching():
        yield services


@asynccontextmanager
async def read_only_sessions(servers: EmbeddedServers) -> AsyncIterator[None]:
    """All sessions begin anew while the database is read-only, and stay read-only afterwards."""
    url, name = servers.database_url, "test_shared"
    read_only = f"ALTER DATABASE {name} SET default_transaction_read_only = on"
    reconnect = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    try:
        await asyncio.to_thread(run, url, read_only, reconnect)
        yield
    finally:
        await asyncio.to_thread(run, url, f"ALTER DATABASE {name} RESET default_transaction_read_only")


@asynccontextmanager
async def standby_away(servers: EmbeddedServers) -> AsyncIterator[None]:
    """Each commit waits for a synchronous standby that is not there."""
    await configure(servers, "synchronous_standby_names = '*'")
    try:
        yield
    finally:
        await configure(servers, "synchronous_standby_names = ''")


async def configure(servers: EmbeddedServers, setting: str) -> None:
    await asyncio.to_thread(run, servers.database_url, f"ALTER SYSTEM SET {setting}", "SELECT pg_reload_conf()")


async def post(client: httpx.AsyncClient, name: str) -> httpx.Response:
    return await client.post("/api/v1/volumes", json={"name": name, "size": 1}, headers={"Idempotency-Key": name})


@pytest.mark.parametrize(
    ("outage", "reason"),
    [
        (read_only_sessions, "the session is read-only"),
        (standby_away, "commits wait for a synchronous standby"),
    ],
    ids=["read-only sessions", "synchronous standby away"],
)
async def test_requests_end_in_time_and_probes_say_why(
    services: Services,
    servers: EmbeddedServers,
    client: httpx.AsyncClient,
    outage: Outage,
    reason: str,
) -> None:
    assert (await post(client, "before")).status_code == 202
    async with outage(servers), asyncio.timeout(4 * TIMEOUT_SECONDS):
        requests = [asyncio.create_task(post(client, f"during-{number}")) for number in range(5)]
        while (ready := await client.get("/readyz")).status_code != 503:
            await asyncio.sleep(0.1)
        refused = await asyncio.gather(*requests)
    async with asyncio.timeout(10):
        again = await asyncio.gather(*(accepted(client, f"during-{number}") for number in range(5)))
        while (await client.get("/readyz")).status_code == 503:
            await asyncio.sleep(0.1)

    assert ready.json()["detail"] == f"PostgreSQL takes no writes: {reason}."
    assert {response.status_code for response in refused} == {503}
    assert all("repeat it with the same Idempotency-Key" in response.json()["detail"] for response in refused)
    assert len({response.json()["id"] for response in again}) == 5
    assert await sql(services, "SELECT count(*) FROM volumes") == [(6,)]


async def accepted(client: httpx.AsyncClient, name: str) -> httpx.Response:
    """Repeat a request until it is accepted."""
    while (response := await post(client, name)).status_code != 202:
        assert response.status_code == 503, response.text
        await asyncio.sleep(0.1)
    return response
