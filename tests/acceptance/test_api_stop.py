"""An API that is told to stop keeps nobody waiting for a job that others will end."""

import asyncio
import signal

import httpx
import pytest

from domain.jobs.repository import JobFilter
from domain.paging import PageRequest
from domain.services import Services, open_services
from tests.acceptance.waiting import exit_code
from tests.acceptance.yard import SMALL, Yard


async def accepted(services: Services) -> None:
    async with asyncio.timeout(60):
        while not (await services.jobs.list_jobs(JobFilter(), PageRequest("all"))).items:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(("route", "prefer"), [("/api/v1/volumes", "wait=30"), ("/api/v0/volumes", "")])
async def test_whoever_waits_gets_the_job_as_it_is(yard: Yard, route: str, prefer: str) -> None:
    address = yard.start_api()
    (api,) = yard.processes
    # Less patience than the half minute that the server would have.
    async with open_services(yard.settings) as services, httpx.AsyncClient(base_url=address, timeout=20) as client:
        body = {"name": "nobody-works", "size": SMALL}
        waiting = asyncio.create_task(client.post(route, json=body, headers={"Prefer": prefer}))
        await accepted(services)
        api.send_signal(signal.SIGTERM)
        answer = await waiting

    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert await exit_code(api) in (0, -signal.SIGTERM)
