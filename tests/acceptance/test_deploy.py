"""Deploys: a worker that is told to stop drains, then hands back; an older one leaves to newer ones what is theirs."""

import signal
import time
from pathlib import Path

import pytest

from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.growth import Growth
from domain.volumes.service import NewVolume
from tests.acceptance import journal
from tests.acceptance.cluster import LARGE, SMALL, Cluster
from tests.acceptance.waiting import ended, exit_code, said, seen
from tests.support.forked import Process
from tests.support.worker import running_worker

LONG = "3600"


@pytest.fixture
def log(cluster: Cluster) -> Path:
    return cluster.folder / "log"


def start(cluster: Cluster, log: Path, module: str = "worker", **more: str) -> Process:
    return cluster.start_worker(module, url=cluster.url(gate=cluster.gate()), log=log, **more)


async def held_up(services: Services, cluster: Cluster, log: Path, drain: str) -> tuple[Process, Job]:
    """A worker in the middle of a job, which would go on for as long as the gate is closed."""
    cluster.gate().touch()
    worker = start(cluster, log, CISTERN_DRAIN_SECONDS=drain)
    job = await services.volumes.request_create(NewVolume("held-up", SMALL))
    await seen(cluster.journal, {"begun"}, worker.pid)
    return worker, job


async def test_a_worker_that_is_told_to_stop_ends_its_jobs_and_takes_no_new_ones(cluster: Cluster, log: Path) -> None:
    async with open_services(cluster.settings) as services, services.watcher.watching():
        worker, job = await held_up(services, cluster, log, LONG)
        worker.send_signal(signal.SIGTERM)
        await said(log, "worker.draining")
        later = await services.volumes.request_create(NewVolume("later", SMALL))
        cluster.gate().unlink()
        assert await exit_code(worker) == 0

        done, later = await services.jobs.get(job.id), await services.jobs.get(later.id)
        assert (done.status, done.attempt, done.epoch) == ("succeeded", 1, 0)
        assert (later.status, later.attempt, later.epoch) == ("queued", 0, 0)
        async with running_worker(cluster.settings):
            assert (await ended(services, later.id)).attempt == 1


async def test_what_has_not_ended_after_the_draining_is_handed_back_without_an_attempt(
    cluster: Cluster, log: Path
) -> None:
    async with open_services(cluster.settings) as services, services.watcher.watching():
        worker, job = await held_up(services, cluster, log, "0")
        worker.send_signal(signal.SIGTERM)
        assert await exit_code(worker) == 0
        handed_back = await services.jobs.get(job.id)
        assert (handed_back.status, handed_back.attempt, handed_back.epoch) == ("queued", 0, 1)

        async with running_worker(cluster.settings):
            done = await ended(services, job.id)
        assert (done.status, done.attempt, done.error) == ("succeeded", 1, None)
        journal.assert_orderly(cluster.journal, done)


async def test_a_second_signal_hurries(cluster: Cluster, log: Path) -> None:
    async with open_services(cluster.settings) as services, services.watcher.watching():
        worker, job = await held_up(services, cluster, log, LONG)
        worker.send_signal(signal.SIGTERM)
        await said(log, "worker.draining")
        worker.send_signal(signal.SIGTERM)
        assert await exit_code(worker) == 0

        handed_back = await services.jobs.get(job.id)
        assert (handed_back.status, handed_back.attempt) == ("queued", 0)


async def test_a_kind_that_an_older_worker_does_not_know_is_left_to_a_newer_one(cluster: Cluster, log: Path) -> None:
    async with open_services(cluster.settings) as services, services.watcher.watching():
        older = start(cluster, log, "tests.acceptance.sabotage", SABOTAGE_KIND="volume.expand")
        volume_id = (await ended(services, (await services.volumes.request_create(NewVolume("v", SMALL))).id)).volume_id
        assert volume_id is not None
        began = time.monotonic()
        job = await services.volumes.request_expand(volume_id, Growth(to=LARGE))
        await said(log, "UNANSWERED")
        waiting = await services.jobs.get(job.id)
        assert (waiting.status, waiting.attempt, waiting.epoch) == ("queued", 0, 0)

        async with running_worker(cluster.settings):
            done = await ended(services, job.id)  # it is rung again by those who know it, and may be swallowed again
        assert (done.status, done.attempt, done.epoch) == ("succeeded", 1, 0)
        rounds = (time.monotonic() - began) / (cluster.settings.lease_seconds / 3)
        assert log.read_text().count("UNANSWERED") <= rounds + 2, "it does not spin"
        assert all(entry.pid != older.pid for entry in journal.read(cluster.journal) if entry.operation == "expand")
        assert older.poll() is None
