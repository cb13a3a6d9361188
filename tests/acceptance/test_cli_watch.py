"""`cistern jobs ...` as a process of its own, on a real API with a real worker."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process

import httpx

from tests.acceptance.yard import ROOT, Yard

WAIT = {"Prefer": "wait=30"}
CISTERN = (sys.executable, "-c", "from api.cli import main; main()")


async def cistern(address: str, *arguments: str) -> Process:
    environment = os.environ | {"CISTERN_URL": address, "PYTHONUNBUFFERED": "1"}
    return await asyncio.create_subprocess_exec(*CISTERN, *arguments, cwd=ROOT, env=environment, stdout=PIPE)


async def line(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return (await process.stdout.readline()).decode()


async def test_a_bulk_job_is_watched_to_its_end_and_listed_with_it(yard: Yard) -> None:
    yard.start_worker(url=yard.url(gate=yard.gate()))
    address = await asyncio.to_thread(yard.start_api)
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60) as http:
        for number in range(3):
            await http.post("/volumes", json={"name": f"v{number}", "size": "1MiB"}, headers=WAIT)
        yard.gate().touch()
        job = (await http.post("/volumes/expand", json={"to": "3MiB"})).json()

    watching = await cistern(address, "jobs", "watch", job["id"])
    while "0 of 3 volumes" not in (seen := await line(watching)):
        assert seen, "it is watched until it has ended"
    yard.gate().unlink()
    rest, _ = await watching.communicate()

    assert watching.returncode == 0
    assert rest.decode().splitlines()[-1].split() == [job["id"], "bulk.expand", "succeeded", "3", "of", "3", "volumes"]
    listing = await cistern(address, "jobs", "list", "--kind", "bulk.expand", "--json")
    listed = json.loads(await line(listing))
    assert (await listing.wait(), listed["id"], listed["status"]) == (0, job["id"], "succeeded")
