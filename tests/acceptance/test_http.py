"""What a client sees: real API, real workers, real storage."""

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

MIB = 1 << 20


@asynccontextmanager
async def client(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    address = await asyncio.to_thread(cluster.start_api)
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60) as http:
        yield http


async def poll(http: httpx.AsyncClient, job: dict[str, Any], *until: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while job["status"] not in until:
            await asyncio.sleep(0.02)
            job = (await http.get(f"/jobs/{job['id']}")).json()
    return job


async def created(http: httpx.AsyncClient, name: str, size: int = MIB) -> dict[str, Any]:
    answer = await http.post("/volumes", json={"name": name, "size": size}, headers={"Prefer": "wait=30"})
    assert answer.json()["status"] == "succeeded", answer.text
    return dict((await http.get(f"/volumes/{answer.json()['volume_id']}")).json())


async def test_a_job_is_accepted_queued_running_and_then_names_what_it_made(cluster: Cluster) -> None:
    async with client(cluster) as http:
        answer = await http.post("/volumes", json={"name": "first", "size": "1MiB"})
        job = answer.json()
        assert answer.status_code == 202
        assert answer.headers["Location"] == f"/api/v1/jobs/{job['id']}"
        assert int(answer.headers["Retry-After"]) >= 1
        assert job["status"] == "queued"

        cluster.gate().touch()
        cluster.start_worker(url=cluster.url(gate=cluster.gate()))
        assert (await poll(http, job, "running"))["attempt"] == 1
        cluster.gate().unlink()

        job = await poll(http, job, "succeeded")
        volume = (await http.get(f"/volumes/{job['volume_id']}")).json()
        assert job["result"] == {"volume_id": volume["id"], "size": MIB}
        assert (volume["name"], volume["state"], Path(volume["path"]).stat().st_size) == ("first", "available", MIB)


async def test_storage_tells_the_truth_of_sizes_and_bytes(cluster: Cluster) -> None:
    cluster.start_worker()
    async with client(cluster) as http:
        volume = await created(http, "true", 5 * MIB + 1)
        data = Path(volume["path"])
        assert (data.stat().st_size, data.stat().st_blocks) == (5 * MIB + 1, 0)
        data.write_bytes(os.urandom(MIB) + bytes(4 * MIB + 1))
        before = data.read_bytes()

        wish = {"to": 9 * MIB}
        await http.post(f"/volumes/{volume['id']}/expand", json=wish, headers={"Prefer": "wait=30"})

        assert data.read_bytes() == before + bytes(9 * MIB - len(before))
        answer = await http.delete(f"/volumes/{volume['id']}", headers={"Prefer": "wait=30"})
        assert answer.json()["status"] == "succeeded"
        assert not data.parent.exists()
        assert (await http.get(f"/volumes/{volume['id']}")).status_code == 404


async def test_of_fifty_simultaneous_expands_one_is_accepted_and_the_others_learn_its_job(cluster: Cluster) -> None:
    cluster.start_worker(url=cluster.url(gate=cluster.gate()))
    async with client(cluster) as http:
        volume = await created(http, "wanted")
        cluster.gate().touch()

        answers = await asyncio.gather(
            *(http.post(f"/volumes/{volume['id']}/expand", json={"to": (2 + n) * MIB}) for n in range(50))
        )

        accepted = [answer.json() for answer in answers if answer.status_code == 202]
        refused = [answer.json() for answer in answers if answer.status_code == 409]
        assert (len(accepted), len(refused)) == (1, 49)
        assert {(problem["code"], problem["job_id"]) for problem in refused} == {("volume-busy", accepted[0]["id"])}
        cluster.gate().unlink()
        job = await poll(http, accepted[0], "succeeded")
        assert Path(volume["path"]).stat().st_size == job["result"]["size"] == job["params"]["to_size"]


async def test_a_worker_told_to_stop_finishes_what_it_is_at_and_takes_nothing_new(cluster: Cluster) -> None:
    cluster.gate().touch()
    worker = cluster.start_worker(url=cluster.url(gate=cluster.gate()))
    async with client(cluster) as http:
        first = (await http.post("/volumes", json={"name": "at-work", "size": MIB})).json()
        await poll(http, first, "running")

        worker.send_signal(signal.SIGTERM)
        cluster.gate().unlink()

        assert await exit_code(worker) == 0
        assert (await poll(http, first, "succeeded"))["attempt"] == 1
        second = (await http.post("/volumes", json={"name": "late", "size": MIB})).json()
        assert second["status"] == "queued"


async def test_a_worker_out_of_patience_hands_its_job_back_without_spending_the_attempt(cluster: Cluster) -> None:
    cluster.gate().touch()
    worker = cluster.start_worker(url=cluster.url(gate=cluster.gate()), CISTERN_DRAIN_SECONDS="0")
    async with client(cluster) as http:
        job = (await http.post("/volumes", json={"name": "handed-back", "size": MIB})).json()
        await poll(http, job, "running")

        worker.send_signal(signal.SIGTERM)

        assert await exit_code(worker) == 0
        job = await poll(http, job, "queued")
        assert job["attempt"] == 0
        cluster.start_worker()
        job = await poll(http, job, "succeeded")
        assert job["attempt"] == 1
        fences = {entry.fence for entry in journal.read(cluster.journal) if entry.event == "published"}
        assert fences == {(1, 1)}, "the second ring did it"


async def test_workers_come_back_by_themselves_when_redis_was_away(cluster: Cluster, servers: EmbeddedServers) -> None:
    worker = cluster.start_worker()
    async with client(cluster) as http:
        await created(http, "before")

        await asyncio.to_thread(servers.kill_redis)
        try:
            job = (await http.post("/volumes", json={"name": "meanwhile", "size": MIB})).json()
            assert job["status"] == "queued", "accepted although nobody can be told"
        finally:
            await asyncio.to_thread(servers.start_redis)

        await poll(http, job, "succeeded")
        await created(http, "after")
        assert worker.poll() is None


def test_a_worker_that_cannot_start_says_why_in_one_line(cluster: Cluster, servers: EmbeddedServers) -> None:
    bad: list[tuple[dict[str, str], str]] = [
        ({"CISTERN_DATABASE_URL": ""}, "CISTERN_DATABASE_URL"),
        ({"CISTERN_MAX_JOBS": "many"}, "CISTERN_MAX_JOBS"),
        ({"CISTERN_BACKENDS": '{"local": "tape:/dev/st0"}'}, "CISTERN_BACKENDS"),
        ({"CISTERN_DATABASE_URL": servers.database_url}, "migrate"),
    ]
    for environment, named in bad:
        log = cluster.folder / f"log-{named}"
        assert cluster.start_worker(log=log, **environment).wait(60) == 1
        assert log.read_text().count("\n") == 1, log.read_text()
        assert named in log.read_text()
