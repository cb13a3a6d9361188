"""Volumes over HTTP, through a real API, real workers and real storage."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from domain.embedded import EmbeddedServers
from tests.acceptance import journal
from tests.acceptance.cluster import Cluster
from tests.acceptance.waiting import exit_code
from tests.support.keys import BEARER

MIB = 1 << 20


@asynccontextmanager
async def client(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    url = await asyncio.to_thread(cluster.start_api)
    async with httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=60, headers=BEARER) as http:
        yield http


async def poll(http: httpx.AsyncClient, job: dict[str, Any], *until: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while job["status"] not in until:
            await asyncio.sleep(0.02)
            job = (await http.get(f"/jobs/{job['id']}")).json()
    return job


async def created(http: httpx.AsyncClient, name: str, size: int = MIB) -> dict[str, Any]:
    response = await http.post("/volumes", json={"name": name, "size": size}, headers={"Prefer": "wait=30"})
    assert response.json()["status"] == "succeeded", response.text
    return dict((await http.get(f"/volumes/{response.json()['volume_id']}")).json())


async def test_job_runs_and_its_result_names_the_volume(cluster: Cluster) -> None:
    async with client(cluster) as http:
        response = await http.post("/volumes", json={"name": "first", "size": "1MiB"})
        job = response.json()
        assert response.status_code == 202
        assert response.headers["Location"] == f"/api/v1/jobs/{job['id']}"
        assert int(response.headers["Retry-After"]) >= 1
        assert job["status"] == "queued"

        cluster.gate().touch()
        cluster.start_worker(url=cluster.url(gate=cluster.gate()))
        assert (await poll(http, job, "running"))["attempt"] == 1
        cluster.gate().unlink()

        job = await poll(http, job, "succeeded")
        volume = (await http.get(f"/volumes/{job['volume_id']}")).json()
        assert job["result"] == {"volume_id": volume["id"], "size": MIB}
        assert (volume["name"], volume["state"], Path(volume["path"]).stat().st_size) == ("first", "available", MIB)


async def test_files_have_the_reported_sizes_and_keep_their_bytes(cluster: Cluster) -> None:
    cluster.start_worker()
    async with client(cluster) as http:
        volume = await created(http, "sparse", 5 * MIB + 4096)
        data = Path(volume["path"])
        assert (data.stat().st_size, data.stat().st_blocks) == (5 * MIB + 4096, 0)
        data.write_bytes(os.urandom(MIB) + bytes(4 * MIB + 4096))
        before = data.read_bytes()

        await http.post(f"/volumes/{volume['id']}/expand", json={"to": 9 * MIB}, headers={"Prefer": "wait=30"})

        assert data.read_bytes() == before + bytes(9 * MIB - len(before))
        response = await http.delete(f"/volumes/{volume['id']}", headers={"Prefer": "wait=30"})
        assert response.json()["status"] == "succeeded"
        assert not data.parent.exists()
        assert (await http.get(f"/volumes/{volume['id']}")).status_code == 404


async def test_one_of_fifty_concurrent_expansions_wins_and_the_others_get_its_job(cluster: Cluster) -> None:
    cluster.start_worker(url=cluster.url(gate=cluster.gate()))
    async with client(cluster) as http:
        volume = await created(http, "contended")
        cluster.gate().touch()

        responses = await asyncio.gather(
            *(http.post(f"/volumes/{volume['id']}/expand", json={"to": (2 + n) * MIB}) for n in range(50))
        )

        accepted = [response.json() for response in responses if response.status_code == 202]
        rejected = [response.json() for response in responses if response.status_code == 409]
        assert (len(accepted), len(rejected)) == (1, 49)
        assert {(problem["code"], problem["job_id"]) for problem in rejected} == {("volume-busy", accepted[0]["id"])}
        cluster.gate().unlink()
        job = await poll(http, accepted[0], "succeeded")
        assert Path(volume["path"]).stat().st_size == job["result"]["size"] == job["params"]["to_size"]


async def test_stopping_worker_finishes_its_job_and_claims_no_other(cluster: Cluster) -> None:
    cluster.gate().touch()
    worker = cluster.start_worker(url=cluster.url(gate=cluster.gate()))
    async with client(cluster) as http:
        first = (await http.post("/volumes", json={"name": "running", "size": MIB})).json()
        await poll(http, first, "running")

        worker.send_signal(signal.SIGTERM)
        cluster.gate().unlink()

        assert await exit_code(worker) == 0
        assert (await poll(http, first, "succeeded"))["attempt"] == 1
        second = (await http.post("/volumes", json={"name": "late", "size": MIB})).json()
        assert second["status"] == "queued"


async def test_worker_releases_its_job_after_the_drain_time_without_an_attempt(cluster: Cluster) -> None:
    cluster.gate().touch()
    worker = cluster.start_worker(url=cluster.url(gate=cluster.gate()), CISTERN_DRAIN_SECONDS="0")
    async with client(cluster) as http:
        job = (await http.post("/volumes", json={"name": "released", "size": MIB})).json()
        await poll(http, job, "running")

        worker.send_signal(signal.SIGTERM)

        assert await exit_code(worker) == 0
        job = await poll(http, job, "queued")
        assert job["attempt"] == 0
        cluster.start_worker()
        job = await poll(http, job, "succeeded")
        assert job["attempt"] == 1
        fences = {entry.fence for entry in journal.read(cluster.journal) if entry.event == "published"}
        assert fences == {(1, 1)}, "the bytes were published under the second epoch"


async def test_workers_recover_after_a_redis_outage(cluster: Cluster, servers: EmbeddedServers) -> None:
    worker = cluster.start_worker()
    async with client(cluster) as http:
        await created(http, "before")

        await asyncio.to_thread(servers.redis.stop, signal.SIGKILL)
        try:
            job = (await http.post("/volumes", json={"name": "meanwhile", "size": MIB})).json()
            assert job["status"] == "queued", "accepted although no message can be sent"
        finally:
            await asyncio.to_thread(servers.redis.start)

        await poll(http, job, "succeeded")
        await created(http, "after")
        assert worker.poll() is None


def test_worker_that_cannot_start_logs_the_reason_in_one_line(cluster: Cluster, servers: EmbeddedServers) -> None:
    invalid: list[tuple[dict[str, str], str]] = [
        ({"CISTERN_DATABASE_URL": ""}, "CISTERN_DATABASE_URL"),
        ({"CISTERN_MAX_JOBS": "many"}, "CISTERN_MAX_JOBS"),
        ({"CISTERN_BACKENDS": '{"local": "tape:/dev/st0"}'}, "CISTERN_BACKENDS"),
        ({"CISTERN_DATABASE_URL": servers.database_url}, "migrate"),
    ]
    for environment, variable in invalid:
        log = cluster.folder / f"log-{variable}"
        assert cluster.start_worker(log=log, **environment).wait(60) == 1
        assert log.read_text().count("\n") == 1, log.read_text()
        assert variable in log.read_text()
