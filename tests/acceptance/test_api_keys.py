"""One `Idempotency-Key` is one request, also when it is sent concurrently or after the API was killed."""

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.db.migrations.grants import Part
from tests.acceptance.cluster import Cluster
from tests.acceptance.test_http import MIB, client, created, poll
from tests.acceptance.waiting import exit_code
from tests.support.forked import Process
from tests.support.keys import BEARER

KEY = {"Idempotency-Key": "once-and-for-all"}


async def jobs(http: httpx.AsyncClient, kind: str) -> list[dict[str, Any]]:
    return list((await http.get(f"/jobs?kind={kind}")).json()["items"])


@pytest.mark.parametrize(
    ("path", "kind", "body", "other"),
    [
        ("/volumes", "volume.create", {"name": "a", "size": MIB}, {"name": "b", "size": MIB}),
        ("/volumes/expand", "bulk.expand", {"by": MIB}, {"by": 2 * MIB}),
    ],
)
async def test_twenty_concurrent_requests_with_one_key_create_one_job(
    cluster: Cluster, path: str, kind: str, body: dict[str, Any], other: dict[str, Any]
) -> None:
    async with client(cluster) as http:
        responses = await asyncio.gather(*(http.post(path, json=body, headers=KEY) for _ in range(20)))

        assert [response.status_code for response in responses] == [202] * 20
        (job,) = await jobs(http, kind)
        assert all(response.json() == job for response in responses)
        assert {response.headers["location"] for response in responses} == {f"/api/v1/jobs/{job['id']}"}
        assert [response.headers.get("idempotency-replayed") for response in responses].count("true") == 19

        rejected = await http.post(path, json=other, headers=KEY)
        assert (rejected.status_code, rejected.json()["code"]) == (422, "idempotency-key-reused")
        assert len(await jobs(http, kind)) == 1


async def test_rejected_request_lets_the_next_with_its_key_proceed(cluster: Cluster) -> None:
    async with client(cluster) as http:
        path = "/volumes/00000000-0000-7000-8000-000000000000/expand"
        responses = await asyncio.gather(*(http.post(path, json={"by": 1}, headers=KEY) for _ in range(20)))

        assert {(response.status_code, response.json()["code"]) for response in responses} == {
            (404, "volume-not-found")
        }
        assert (await http.post("/volumes", json={"name": "a", "size": 1}, headers=KEY)).status_code == 202


def start_api_that_dies(cluster: Cluster) -> tuple[Process, str]:
    """Start an API that kills itself between the commit of a request and its message."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = cluster.start(["tests.acceptance.sabotage_api", str(port)], cluster.url(), part=Part.API)
    return process, f"http://127.0.0.1:{port}"


async def until_ready(address: str) -> None:
    async with asyncio.timeout(60), httpx.AsyncClient(headers=BEARER) as http:
        while True:
            try:
                if (await http.get(f"{address}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)


async def test_job_survives_a_kill_between_commit_and_dispatch_and_keeps_its_key(
    cluster: Cluster,
) -> None:
    dying_api, address = start_api_that_dies(cluster)
    await until_ready(address)
    body = {"name": "a", "size": MIB}
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", headers=BEARER) as http:
        with pytest.raises(httpx.TransportError):
            await http.post("/volumes", json=body, headers=KEY)
    assert await exit_code(dying_api) == -signal.SIGKILL

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


async def test_batched_jobs_survive_a_kill_between_commit_and_dispatch(cluster: Cluster) -> None:
    dying_api, address = start_api_that_dies(cluster)
    await until_ready(address)
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", headers=BEARER) as http:
        posts = (http.post("/volumes", json={"name": f"v{n}", "size": MIB}) for n in range(20))
        results = await asyncio.gather(*posts, return_exceptions=True)
    assert {isinstance(result, httpx.TransportError) for result in results} == {True}
    assert await exit_code(dying_api) == -signal.SIGKILL

    cluster.start_worker()
    async with client(cluster) as http:
        accepted = await jobs(http, "volume.create")
        succeeded = [await poll(http, job, "succeeded") for job in accepted]
        volumes = (await http.get("/volumes")).json()["items"]

    assert accepted
    assert {job["attempt"] for job in succeeded} == {1}
    assert {job["volume_id"] for job in succeeded} == {volume["id"] for volume in volumes}
    assert {Path(volume["path"]).stat().st_size for volume in volumes} == {MIB}


async def test_concurrent_retries_with_one_key_create_one_retry(cluster: Cluster) -> None:
    cluster.start_worker(url=cluster.url(fail="expand:storage-full*1"))
    async with client(cluster) as http:
        volume = await created(http, "a")
        wait = {"Prefer": "wait=30"}
        failed = (await http.post(f"/volumes/{volume['id']}/expand", json={"by": MIB}, headers=wait)).json()
        assert (failed["status"], failed["error"]["code"]) == ("failed", "storage-full")

        responses = await asyncio.gather(*(http.post(f"/jobs/{failed['id']}/retry", headers=KEY) for _ in range(20)))

        assert {response.status_code for response in responses} == {202}
        (retry,) = {response.json()["id"] for response in responses}
        assert (await poll(http, responses[0].json(), "succeeded"))["retry_of"] == failed["id"]
        cancelled = await http.post(f"/jobs/{retry}/cancel", headers={"Idempotency-Key": "another"})
        assert (cancelled.status_code, cancelled.json()["job_status"]) == (409, "succeeded")
