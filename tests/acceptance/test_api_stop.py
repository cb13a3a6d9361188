"""An API that is told to stop keeps nobody waiting for a job that others will end."""

import asyncio
import signal
import socket
from uuid import uuid4

import httpx
import pytest

from domain.db.pagination import PageRequest
from domain.jobs.store.jobs import JobFilter
from domain.services import Services, open_services
from tests.acceptance.cluster import SMALL, Cluster
from tests.acceptance.waiting import exit_code


async def accepted(services: Services) -> None:
    async with asyncio.timeout(60):
        while not (await services.jobs.list_jobs(JobFilter(), PageRequest("all"))).items:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(("route", "prefer"), [("/api/v1/volumes", "wait=30"), ("/api/v0/volumes", "")])
async def test_whoever_waits_gets_the_job_as_it_is(cluster: Cluster, route: str, prefer: str) -> None:
    address = cluster.start_api()
    (api,) = cluster.processes
    # Less patience than the half minute that the server would have.
    async with open_services(cluster.settings) as services, httpx.AsyncClient(base_url=address, timeout=20) as client:
        body = {"name": "nobody-works", "size": SMALL}
        waiting = asyncio.create_task(client.post(route, json=body, headers={"Prefer": prefer}))
        await accepted(services)
        api.send_signal(signal.SIGTERM)
        answer = await waiting

    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert await exit_code(api) in (0, -signal.SIGTERM)


async def test_who_reads_no_more_is_not_waited_for(cluster: Cluster) -> None:
    address = await asyncio.to_thread(
        cluster.start_api, options=("--no-access-log", "--timeout-graceful-shutdown", "1")
    )
    (api,) = cluster.processes
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60) as http:
        for _ in range(20):
            await http.post("/volumes/expand", json={"by": SMALL, "ids": [str(uuid4()) for _ in range(10_000)]})
    url = httpx.URL(address)
    with socket.create_connection((url.host, url.port)) as client:
        # Eight megabytes: more than all buffers between here and there hold.
        client.sendall(f"GET /api/v1/jobs HTTP/1.1\r\nHost: {url.host}\r\n\r\n".encode())
        await asyncio.to_thread(client.recv, 1)
        api.send_signal(signal.SIGTERM)

        assert await exit_code(api) in (0, -signal.SIGTERM)
