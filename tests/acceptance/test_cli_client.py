"""`cistern jobs ...` and `cistern schedules ...` as processes, on a real API with a real worker."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any

import httpx

from tests.acceptance.cluster import ROOT, Cluster
from tests.support.keys import BEARER, SECRET

WAIT = {"Prefer": "wait=30"}
NIGHTLY = {"name": "nightly-expand", "cron": "0 2 * * *", "action": "bulk.expand", "params": {"policy": "autogrow"}}
CISTERN = (sys.executable, "-m", "api.cli")


async def cistern(url: str, *arguments: str) -> Process:
    environment = os.environ | {"CISTERN_URL": url, "CISTERN_KEY": SECRET.text, "PYTHONUNBUFFERED": "1"}
    return await asyncio.create_subprocess_exec(*CISTERN, *arguments, cwd=ROOT, env=environment, stdout=PIPE)


async def line(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return (await process.stdout.readline()).decode()


async def test_bulk_job_is_watched_to_its_end_and_listed(cluster: Cluster) -> None:
    cluster.start_worker(url=cluster.url(gate=cluster.gate()))
    url = await asyncio.to_thread(cluster.start_api)
    async with httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=60, headers=BEARER) as http:
        for number in range(3):
            await http.post("/volumes", json={"name": f"v{number}", "size": "1MiB"}, headers=WAIT)
        cluster.gate().touch()
        job = (await http.post("/volumes/expand", json={"to": "3MiB"})).json()

    watching = await cistern(url, "jobs", "watch", job["id"])
    while "0 of 3 volumes" not in (printed := await line(watching)):
        assert printed, "the watch ended before the job"
    cluster.gate().unlink()
    rest, _ = await watching.communicate()

    assert watching.returncode == 0
    assert rest.decode().splitlines()[-1].split() == [job["id"], "bulk.expand", "succeeded", "3", "of", "3", "volumes"]
    listing = await cistern(url, "jobs", "list", "--kind", "bulk.expand", "--json")
    listed = json.loads(await line(listing))
    assert (await listing.wait(), listed["id"], listed["status"]) == (0, job["id"], "succeeded")


async def test_schedule_is_listed_paused_resumed_and_run(cluster: Cluster) -> None:
    cluster.start_worker()
    url = await asyncio.to_thread(cluster.start_api)

    async def schedules(*arguments: str) -> list[dict[str, Any]]:
        process = await cistern(url, "schedules", *arguments, "--json")
        out, _ = await process.communicate()
        assert process.returncode == 0
        return [json.loads(line) for line in out.splitlines()]

    async with httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=60, headers=BEARER) as http:
        assert (await http.post("/schedules", json=NIGHTLY)).status_code == 201
    (nightly,) = await schedules("list")
    assert (nightly["name"], nightly["enabled"]) == ("nightly-expand", True)
    assert [one["enabled"] for one in await schedules("pause", "nightly-expand")] == [False]
    assert [one["enabled"] for one in await schedules("resume", nightly["id"])] == [True]
    jobs = await schedules("run", "nightly-expand")
    assert (jobs[-1]["kind"], jobs[-1]["status"]) == ("bulk.expand", "succeeded")
    (nightly,) = await schedules("list")
    assert [run["job_id"] for run in nightly["last_runs"]] == [jobs[-1]["id"]]
