"""What real processes write with CISTERN_LOG_FORMAT=json: every line is JSON, and says what it is about."""

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.jobs.transport.job_queue import QUEUE_NAME, JobQueue
from tests.acceptance.cluster import Cluster
from tests.acceptance.waiting import exit_code, said
from tests.support.forked import Process

REQUEST = {"Prefer": "wait=30", "X-Request-ID": "find-me"}

Line = dict[str, Any]


@pytest.fixture(autouse=True)
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_LOG_FORMAT", "json")


def lines(log: Path) -> list[Line]:
    """All lines of a log, each of which must be JSON."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def of(found: list[Line], event: str) -> list[Line]:
    return [line for line in found if line["event"] == event]


async def stopped(process: Process) -> int:
    process.send_signal(signal.SIGTERM)
    return await exit_code(process)


async def test_a_job_can_be_followed_from_its_request_to_its_end_and_its_volumes(
    cluster: Cluster, tmp_path: Path
) -> None:
    front, open_worker = tmp_path / "api.log", tmp_path / "worker.log"
    worker = cluster.start_worker(log=open_worker, CISTERN_LOG_LEVEL="debug")
    address = await asyncio.to_thread(cluster.start_api, log=front, options=())
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60, headers=REQUEST) as http:
        created = (await http.post("/volumes", json={"name": "first", "size": "1MiB"})).json()
        bulk = (await http.post("/volumes/expand", json={"to": "3MiB"})).json()
        assert (created["status"], bulk["status"]) == ("succeeded", "succeeded")
    assert await stopped(worker) == 0

    asked, done = lines(front), lines(open_worker)
    everything = asked + done
    assert not [line for line in everything if {"None", "null"} & {str(value) for value in line.values()}]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in everything)

    assert of(asked, "Application startup complete."), "uvicorn's own words"
    (post,) = [line for line in asked if "POST /api/v1/volumes HTTP" in line["event"]]
    assert post["request_id"] == "find-me"
    accepted = {line["job_id"]: line for line in of(asked, "job.accepted")}
    assert {line["request_id"] for line in accepted.values()} == {"find-me"}
    assert accepted[created["id"]]["volume_id"] == created["volume_id"]
    assert "volume_id" not in accepted[bulk["id"]]

    assert of(done, "worker.ready")
    own = [line for line in done if line.get("job_id") == created["id"] and line["level"] == "info"]
    assert Counter(line["event"] for line in own) == {"job.started": 1, "job.settled": 1}
    facts = {"kind": "volume.create", "volume_id": created["volume_id"], "attempt": 1}
    assert all(facts.items() <= line.items() for line in own)
    assert own[-1]["outcome"] == "Done"

    (grown,) = of(done, "volume.expanded")
    assert (grown["level"], grown["kind"], grown["parent_id"]) == ("debug", "bulk.lane", bulk["id"])
    assert grown["volume_id"] == created["volume_id"]
    assert [line["job_id"] for line in of(done, "bulk.ended")] == [bulk["id"]]


async def test_a_job_that_is_given_up_says_why(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    cluster.start_worker(url=cluster.url(fail="create:storage-full"), log=log)
    address = await asyncio.to_thread(cluster.start_api, log=tmp_path / "api.log")
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60, headers=REQUEST) as http:
        job = (await http.post("/volumes", json={"name": "first", "size": "1MiB"})).json()

    assert job["status"] == "failed"
    await said(log, "job.settled")
    (end,) = of(lines(log), "job.settled")
    assert (end["job_id"], end["outcome"], end["code"]) == (job["id"], "GaveUp", "storage-full")


async def test_the_stock_arq_speaks_json_too_and_says_nothing_twice(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    worker = cluster.start_worker("arq", "worker.main.WorkerSettings", log=log)
    queue = JobQueue.open(cluster.settings.redis_url)
    await queue.redis.enqueue_job("nobody_knows_it", _queue_name=QUEUE_NAME)
    await queue.close()
    await said(log, "nobody_knows_it")
    address = await asyncio.to_thread(cluster.start_api, log=tmp_path / "api.log")
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60, headers=REQUEST) as http:
        job = (await http.post("/volumes", json={"name": "first", "size": "1MiB"})).json()
    await stopped(worker)

    assert [line["job_id"] for line in of(lines(log), "job.settled")] == [job["id"]]
    warned = [line for line in lines(log) if "nobody_knows_it" in line["event"]]
    assert {line["level"] for line in warned} == {"warning"}
    assert max(Counter(line["event"] for line in warned).values()) == 1


@pytest.mark.parametrize(
    "setting", [{"CISTERN_MAX_JOBS": "many"}, {"CISTERN_DATABASE_URL": "mysql://"}, {"CISTERN_REDIS_URL": "tape:"}]
)
async def test_a_worker_that_cannot_start_says_why_in_one_line_of_json(
    cluster: Cluster, tmp_path: Path, setting: dict[str, str]
) -> None:
    log = tmp_path / "worker.log"
    code = await exit_code(cluster.start_worker(log=log, **setting))

    (line,) = lines(log)
    assert (code, line["event"], line["level"]) == (1, "worker.failed", "error")
    assert next(iter(setting)) in line["reason"]


def test_a_server_that_cannot_start_says_why_in_json(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CISTERN_MAX_JOBS", "many")
    log = tmp_path / "api.log"
    with pytest.raises(AssertionError, match="did not become ready"):
        cluster.start_api(log=log)

    events = [line["event"] for line in lines(log)]
    assert [event for event in events if "CISTERN_MAX_JOBS" in event and "cannot start" in event]
    assert events[-1] == "Application startup failed. Exiting."
