"""A client that polls less often than servers usually expect finds its connection open, however the API was started."""

import asyncio
import http.client
from contextlib import ExitStack, closing

import httpx
import pytest

from tests.acceptance.cluster import Cluster
from tests.acceptance.scale import LONG

#: Longer than the load balancers of the large providers keep idle connections (60 s).
IDLE_SECONDS = 65


@pytest.mark.skipif(not LONG, reason="waits for 65 s; CISTERN_TEST_LONG=1 runs it")
async def test_idle_connection_is_kept(cluster: Cluster) -> None:
    commands = [("uvicorn", "api.main:app"), ("api.cli", "serve")]  # `up`, the Procfile and Compose use the second
    addresses = [await asyncio.to_thread(cluster.start_api, command=command) for command in commands]
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(_connection(address))) for address in addresses]
        own_ports = [_port_after_a_request(connection) for connection in connections]
        await asyncio.sleep(IDLE_SECONDS)

        assert [_port_after_a_request(connection) for connection in connections] == own_ports


def _connection(address: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(httpx.URL(address).netloc.decode())


def _port_after_a_request(connection: http.client.HTTPConnection) -> int:
    """Send a request and return the client's port, which changes if the connection had to be opened again."""
    connection.request("GET", "/healthz")
    assert connection.getresponse().read()
    port: int = connection.sock.getsockname()[1]
    return port
