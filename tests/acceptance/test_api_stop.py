"""Graceful shutdown of the API: waiting requests return the present state of their job at once."""

import asyncio
import signal
import socket
from uuid import uuid4

import httpx
import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import PageRequest
from domain.jobs.store.jobs import JobFilter
from domain.services import Services, open_services
from tests.acceptance.cluster import SMALL, Cluster
from tests.acceptance.waiting import exit_code
from tests.support.keys import BEARER


async def wait_until_accepted(services: Services) -> None:
    async with asyncio.timeout(60):
        while not (await services.jobs.list_jobs(JobFilter(), PageRequest("all"), project_id=DEFAULT_PROJECT)).items:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(("route", "prefer"), [("/api/v1/volumes", "wait=30"), ("/api/v0/volumes", "")])
async def test_stopping_api_returns_the_job_to_waiting_clients(cluster: Cluster, route: str, prefer: str) -> None:
    address = cluster.start_api()
    (api,) = cluster.processes
    # The client's timeout is shorter than the 30 seconds that the request would wait.
    async with (
        open_services(cluster.settings, adopt=True) as services,
        httpx.AsyncClient(base_url=address, timeout=20, headers=BEARER) as client,
    ):
        body = {"name": "without-workers", "size": SMALL}
        waiting = asyncio.create_task(client.post(route, json=body, headers={"Prefer": prefer}))
        await wait_until_accepted(services)
        api.send_signal(signal.SIGTERM)
        response = await waiting

    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert await exit_code(api) in (0, -signal.SIGTERM)


async def test_stopping_api_does_not_wait_for_a_client_that_stops_reading(cluster: Cluster) -> None:
    address = await asyncio.to_thread(
        cluster.start_api, options=("--no-access-log", "--timeout-graceful-shutdown", "1")
    )
    (api,) = cluster.processes
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60, headers=BEARER) as http:
        job = await http.post("/volumes/expand", json={"by": SMALL, "ids": [str(uuid4()) for _ in range(10_000)]})
    url = httpx.URL(address)
    with socket.create_connection((url.host, url.port)) as client:
        # The responses have eight megabytes: more than the buffers of both sockets hold.
        head = f"Host: {url.host}\r\nAuthorization: {BEARER['Authorization']}\r\n\r\n"
        client.sendall(20 * f"GET {job.headers['location']} HTTP/1.1\r\n{head}".encode())
        await asyncio.to_thread(client.recv, 1)
        api.send_signal(signal.SIGTERM)

        assert await exit_code(api) in (0, -signal.SIGTERM)
