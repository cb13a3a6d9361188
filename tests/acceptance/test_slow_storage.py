"""A call to the storage that cannot report progress takes longer than work may stall: it succeeds once, late."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.service import NewVolume
from tests.acceptance import journal
from tests.acceptance.cluster import SMALL, Cluster
from tests.acceptance.waiting import ended, wait_for_entry, wait_for_log
from tests.support.forked import Process
from tests.support.keys import BEARER
from tests.support.worker import running_worker


@pytest.fixture
def slow_calls(cluster: Cluster) -> Path:
    """A file; the calls that it names do not return while it exists."""
    return cluster.folder / "slow"


async def a_volume(services: Services, cluster: Cluster) -> UUID:
    async with running_worker(cluster.settings):
        job = await ended(services, (await services.volumes.request_create(NewVolume("v", SMALL))).id)
    assert job.volume_id is not None
    return job.volume_id


def start_worker(cluster: Cluster, slow_calls: Path, **extra: str) -> Process:
    log = cluster.folder / "log"
    return cluster.start_worker(url=cluster.url(slow_calls=slow_calls), log=log, CISTERN_STALL_SECONDS="1", **extra)


async def until_shown(http: httpx.AsyncClient, job: Job) -> dict[str, Any]:
    """Wait until the API shows what the job waits for."""
    async with asyncio.timeout(60):
        while not (body := (await http.get(f"/jobs/{job.id}")).json())["waiting_for"]:
            await asyncio.sleep(0.05)
    return dict(body)


@pytest.mark.parametrize("call", ["reflink", "sync"])
async def test_slow_call_that_cannot_report_succeeds_at_the_first_attempt_and_is_shown(
    cluster: Cluster, slow_calls: Path, call: str
) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        volume_id = await a_volume(services, cluster)
        slow_calls.write_text(call)
        worker = start_worker(cluster, slow_calls)
        job = await services.snapshots.request_take(volume_id, "s")
        address = await asyncio.to_thread(cluster.start_api)
        async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60, headers=BEARER) as http:
            shown = await until_shown(http, job)
            await wait_for_log(cluster.folder / "log", "job.slow_call")
            slow_calls.unlink()
            ended_job = await ended(services, job.id)
            after = (await http.get(f"/jobs/{job.id}")).json()

    assert (shown["status"], shown["attempt"]) == ("running", 1)
    assert shown["waiting_for"] == {"call": call, "limit_seconds": 1800.0} | {"since": shown["waiting_for"]["since"]}
    assert (ended_job.status, ended_job.attempt, after["waiting_for"]) == ("succeeded", 1, None)
    assert len([entry for entry in journal.read(cluster.journal) if entry.pid == worker.pid]) == 3, "it was repeated"


async def test_call_that_takes_longer_than_its_own_limit_is_left_to_another_worker(
    cluster: Cluster, slow_calls: Path
) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        volume_id = await a_volume(services, cluster)
        slow_calls.write_text("reflink")
        stuck = start_worker(cluster, slow_calls, CISTERN_BLOCKING_CALL_SECONDS="2")
        job = await services.snapshots.request_take(volume_id, "s")
        await wait_for_entry(cluster.journal, {"hanging"}, stuck.pid)
        await wait_for_log(cluster.folder / "log", "job.stalled")
        async with running_worker(cluster.settings):
            ended_job = await ended(services, job.id)
        slow_calls.unlink()
        await wait_for_entry(cluster.journal, {"refused"}, stuck.pid)

    assert ended_job.status == "succeeded"
    assert ended_job.attempt > 1
    journal.assert_orderly(cluster.journal, ended_job)
