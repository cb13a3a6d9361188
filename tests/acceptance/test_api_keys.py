"""One Idempotency-Key is one request: sent twenty times at once, or again after the API was killed."""

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.cluster import Cluster
from tests.acceptance.test_http import MIB, client, created, poll
from tests.acceptance.waiting import exit_code
from tests.support.forked import Process

KEY = {"Idempotency-Key": "once-and-for-all"}


async def jobs(http: httpx.AsyncClient, kind: str) -> list[dict[str, Any]]:
    return list((await http.get(f"/jobs?kind={kind}")).json()["items"])


@pytest.mark.parametrize(
    ("address", "kind", "body", "other"),
    [
        ("/volumes", "volume.create", {"name": "a", "size": MIB}, {"name": "b", "size": MIB}),
        ("/volumes/expand", "bulk.expand", {"by": MIB}, {"by": 2 * MIB}),
    ],
)
async def test_one_key_sent_twenty_times_at_once_is_one_job_and_one_answer(
    cluster: Cluster, address: str, kind: str, body: dict[str, Any], other: dict[str, Any]
) -> None:
    async with client(cluster) as http:
        answers = await asyncio.gather(*(http.post(address, json=body, headers=KEY) for _ in range(20)))

        assert [answer.status_code for answer in answers] == [202] * 20
        (job,) = await jobs(http, kind)
        assert all(answer.json() == job for answer in answers)
        assert {answer.headers["location"] for answer in answers} == {f"/api/v1/jobs/{job['id']}"}
        assert [answer.headers.get("idempotency-replayed") for answer in answers].count("true") == 19

        refused = await http.post(address, json=other, headers=KEY)
        assert (refused.status_code, refused.json()["code"]) == (422, "idempotency-key-reused")
        assert len(await jobs(http, kind)) == 1


async def test_of_twenty_in_flight_the_next_takes_its_turn_when_the_first_is_refused(cluster: Cluster) -> None:
    async with client(cluster) as http:
        address = "/volumes/00000000-0000-7000-8000-000000000000/expand"
        answers = await asyncio.gather(*(http.post(address, json={"by": 1}, headers=KEY) for _ in range(20)))

        assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(404, "volume-not-found")}
        assert (await http.post("/volumes", json={"name": "a", "size": 1}, headers=KEY)).status_code == 202


def start_doomed_api(cluster: Cluster) -> tuple[Process, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = cluster.start(["tests.acceptance.sabotage_api", str(port)], cluster.url())
    return process, f"http://127.0.0.1:{port}"


async def until_ready(address: str) -> None:
    async with asyncio.timeout(60), httpx.AsyncClient() as http:
        while True:
            try:
                if (await http.get(f"{address}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)


async def test_after_a_kill_between_commit_and_ring_the_same_key_is_the_same_job_and_gets_done(
    cluster: Cluster,
) -> None:
    doomed, address = start_doomed_api(cluster)
    await until_ready(address)
    body = {"name": "a", "size": MIB}
    async with httpx.AsyncClient(base_url=f"{address}/api/v1") as http:
        with pytest.raises(httpx.TransportError):
            await http.post("/volumes", json=body, headers=KEY)
    assert await exit_code(doomed) == -signal.SIGKILL

    cluster.start_worker()
    async with client(cluster) as http:
        again = await http.post("/volumes", json=body, headers=KEY)

        assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
        (job,) = await jobs(http, "volume.create")
        assert again.json()["id"] == job["id"]
        job = await poll(http, again.json(), "succeeded")
        assert (job["attempt"], job["volume_id"]) == (1, again.json()["volume_id"])
        volume = (await http.get(f"/volumes/{job['volume_id']}")).json()
        assert Path(volume["path"]).stat().st_size == MIB


async def test_after_a_kill_between_commit_and_ring_all_that_were_accepted_together_get_done(cluster: Cluster) -> None:
    doomed, address = start_doomed_api(cluster)
    await until_ready(address)
    async with httpx.AsyncClient(base_url=f"{address}/api/v1") as http:
        asked = (http.post("/volumes", json={"name": f"v{n}", "size": MIB}) for n in range(20))
        ends = await asyncio.gather(*asked, return_exceptions=True)
    assert {isinstance(end, httpx.TransportError) for end in ends} == {True}
    assert await exit_code(doomed) == -signal.SIGKILL

    cluster.start_worker()
    async with client(cluster) as http:
        accepted = await jobs(http, "volume.create")
        done = [await poll(http, job, "succeeded") for job in accepted]
        volumes = (await http.get("/volumes")).json()["items"]

    assert accepted
    assert {job["attempt"] for job in done} == {1}
    assert {job["volume_id"] for job in done} == {volume["id"] for volume in volumes}
    assert {Path(volume["path"]).stat().st_size for volume in volumes} == {MIB}


async def test_a_retry_under_a_key_is_one_retry(cluster: Cluster) -> None:
    cluster.start_worker(url=cluster.url(fail="expand:storage-full*1"))
    async with client(cluster) as http:
        volume = await created(http, "a")
        wait = {"Prefer": "wait=30"}
        failed = (await http.post(f"/volumes/{volume['id']}/expand", json={"by": MIB}, headers=wait)).json()
        assert (failed["status"], failed["error"]["code"]) == ("failed", "storage-full")

        answers = await asyncio.gather(*(http.post(f"/jobs/{failed['id']}/retry", headers=KEY) for _ in range(20)))

        assert {answer.status_code for answer in answers} == {202}
        (retry,) = {answer.json()["id"] for answer in answers}
        assert (await poll(http, answers[0].json(), "succeeded"))["retry_of"] == failed["id"]
        cancelled = await http.post(f"/jobs/{retry}/cancel", headers={"Idempotency-Key": "another"})
        assert (cancelled.status_code, cancelled.json()["job_status"]) == (409, "succeeded")
