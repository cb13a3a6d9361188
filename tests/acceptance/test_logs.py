"""Logs of real processes with CISTERN_LOG_FORMAT=json: every line is JSON and has the ids of its job or request."""

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from domain.jobs.transport.job_queue import FUNCTION_NAME
from domain.services import open_services
from tests.acceptance.cluster import Cluster
from tests.acceptance.waiting import exit_code, wait_for_log
from tests.support.forked import Process
from tests.support.keys import BEARER

REQUEST = {"Prefer": "wait=30", "X-Request-ID": "find-me"}

Line = dict[str, Any]


@pytest.fixture(autouse=True)
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_LOG_FORMAT", "json")


def lines_of(log: Path) -> list[Line]:
    """Return all lines of a log, each of which must be JSON."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def with_event(lines: list[Line], event: str) -> list[Line]:
    return [line for line in lines if line["event"] == event]


async def stop(process: Process) -> int:
    process.send_signal(signal.SIGTERM)
    return await exit_code(process)


async def test_logs_follow_a_job_from_its_request_to_its_end(cluster: Cluster, tmp_path: Path) -> None:
    api_log, worker_log = tmp_path / "api.log", tmp_path / "worker.log"
    worker = cluster.start_worker(log=worker_log, CISTERN_LOG_LEVEL="debug")
    address = await asyncio.to_thread(cluster.start_api, log=api_log, options=())
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60, headers=REQUEST | BEARER) as http:
        created = (await http.post("/volumes", json={"name": "first", "size": "1MiB"})).json()
        bulk = (await http.post("/volumes/expand", json={"to": "3MiB"})).json()
        assert (created["status"], bulk["status"]) == ("succeeded", "succeeded")
    assert await stop(worker) == 0

    api, worker_lines = lines_of(api_log), lines_of(worker_log)
    everything = api + worker_lines
    assert not [line for line in everything if {"None", "null"} & {str(value) for value in line.values()}]
    assert all({"event", "level", "timestamp"} <= line.keys() for line in everything)

    assert with_event(api, "Application startup complete."), "a line of uvicorn"
    (post,) = [line for line in api if "POST /api/v1/volumes HTTP" in line["event"]]
    assert post["request_id"] == "find-me"
    accepted = {line["job_id"]: line for line in with_event(api, "job.accepted")}
    assert {line["request_id"] for line in accepted.values()} == {"find-me"}
    assert accepted[created["id"]]["volume_id"] == created["volume_id"]
    assert "volume_id" not in accepted[bulk["id"]]
    assert (accepted[bulk["id"]]["kind"], accepted[bulk["id"]]["max_concurrent"]) == ("bulk.expand", 10)

    assert with_event(worker_lines, "worker.ready")
    own = [line for line in worker_lines if line.get("job_id") == created["id"] and line["level"] == "info"]
    assert Counter(line["event"] for line in own) == {"job.started": 1, "job.settled": 1}
    shared = {"kind": "volume.create", "volume_id": created["volume_id"], "attempt": 1}
    assert all(shared.items() <= line.items() for line in own)
    assert (own[-1]["status"], own[-1]["outcome"]) == ("succeeded", "succeeded")
    assert own[-1]["queue_ms"] >= 0
    assert own[-1]["duration_ms"] >= 0

    (grown,) = with_event(worker_lines, "volume.expanded")
    assert (grown["level"], grown["kind"], grown["parent_id"]) == ("debug", "bulk.lane", bulk["id"])
    assert grown["volume_id"] == created["volume_id"]
    assert [line["job_id"] for line in with_event(worker_lines, "bulk.ended")] == [bulk["id"]]


async def test_settled_line_of_a_failed_job_has_its_error_code(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    cluster.start_worker(url=cluster.url(fail="create:storage-full"), log=log)
    address = await asyncio.to_thread(cluster.start_api, log=tmp_path / "api.log")
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60, headers=REQUEST | BEARER) as http:
        job = (await http.post("/volumes", json={"name": "first", "size": "1MiB"})).json()

    assert job["status"] == "failed"
    await wait_for_log(log, "job.settled")
    (end,) = with_event(lines_of(log), "job.settled")
    assert (end["job_id"], end["status"], end["code"]) == (job["id"], "failed", "storage-full")


async def test_stock_arq_writes_json_too_and_no_line_twice(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    worker = cluster.start_worker("arq", "worker.main.WorkerSettings", log=log)
    async with open_services(cluster.settings) as services:
        redis, often = services.queue.redis, 10**7  # arq warns of that, in whichever of the two loops
        await redis.enqueue_job(FUNCTION_NAME, str(uuid4()), 0, _job_id="too-often", _job_try=often)
    await wait_for_log(log, "max retries")
    address = await asyncio.to_thread(cluster.start_api, log=tmp_path / "api.log")
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60, headers=REQUEST | BEARER) as http:
        job = (await http.post("/volumes", json={"name": "first", "size": "1MiB"})).json()
    await stop(worker)

    assert [line["job_id"] for line in with_event(lines_of(log), "job.settled")] == [job["id"]]
    warnings = [line for line in lines_of(log) if "max retries" in line["event"]]
    assert {line["level"] for line in warnings} == {"warning"}
    assert max(Counter(line["event"] for line in warnings).values()) == 1


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"CISTERN_MAX_JOBS": "many"}, "CISTERN_MAX_JOBS: "),
        ({"CISTERN_DATABASE_URL": "mysql://"}, "CISTERN_DATABASE_URL: "),
        ({"CISTERN_REDIS_URL": "tape:"}, "CISTERN_REDIS_URL must"),
        ({"CISTERN_DATABASE_URL": "postgresql://u@127.0.0.1:1/d"}, "127.0.0.1:1: "),
    ],
)
async def test_start_up_error_of_a_worker_is_one_line_of_json(
    cluster: Cluster, tmp_path: Path, setting: dict[str, str], reason: str
) -> None:
    log = tmp_path / "worker.log"
    code = await exit_code(cluster.start_worker(log=log, **setting))

    (line,) = lines_of(log)
    assert (code, line["event"], line["level"]) == (1, "worker.failed", "error")
    assert reason in line["reason"]


def test_start_up_error_of_the_api_is_json(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_MAX_JOBS", "many")
    log = tmp_path / "api.log"
    with pytest.raises(AssertionError, match="did not become ready"):
        cluster.start_api(log=log)

    events = [line["event"] for line in lines_of(log)]
    assert [event for event in events if "CISTERN_MAX_JOBS" in event and "cannot start" in event]
    assert events[-1] == "Application startup failed. Exiting."
