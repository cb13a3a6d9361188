"""A worker that serves metrics ends on SIGTERM, whatever the clients of its metrics do."""

import asyncio
import signal
import time

import httpx

from api.cli.stack import free_port
from domain.services import Services
from tests.acceptance.cluster import Cluster
from tests.acceptance.waiting import TIMEOUT_SECONDS, exit_code


async def test_worker_ends_although_a_client_of_its_metrics_sends_no_request(
    cluster: Cluster, services: Services
) -> None:
    port = free_port()
    worker = cluster.start_worker(CISTERN_METRICS=str(port))
    async with asyncio.timeout(TIMEOUT_SECONDS), httpx.AsyncClient() as http:
        while not await services.workers.count_alive():
            await asyncio.sleep(0.05)
        assert "cistern_lanes_running 0.0" in (await http.get(f"http://127.0.0.1:{port}/metrics")).text
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        worker.send_signal(signal.SIGTERM)
        started_at = time.monotonic()

        assert await exit_code(worker) == 0
        assert time.monotonic() - started_at < 8  # less than such a client is given
    finally:
        writer.close()
