"""Deploys: a stopping worker drains, then releases its jobs; an older worker leaves new kinds of job to newer ones."""

import signal
import time
from pathlib import Path

import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.acceptance import journal
from tests.acceptance.cluster import LARGE, SMALL, Cluster
from tests.acceptance.waiting import ended, exit_code, wait_for_entry, wait_for_log
from tests.support.forked import Process
from tests.support.worker import running_worker

#: A drain time, in seconds, that is longer than any test.
LONG = "3600"


@pytest.fixture
def log(cluster: Cluster) -> Path:
    return cluster.folder / "log"


def start(cluster: Cluster, log: Path, module: str = "worker", **extra: str) -> Process:
    return cluster.start_worker(module, url=cluster.url(gate=cluster.gate()), log=log, **extra)


async def start_blocked(services: Services, cluster: Cluster, log: Path, drain: str) -> tuple[Process, Job]:
    """Start a worker and a job in it that cannot finish while the gate exists."""
    cluster.gate().touch()
    worker = start(cluster, log, CISTERN_DRAIN_SECONDS=drain)
    job = await services.volumes.request_create(NewVolume("blocked", SMALL))
    await wait_for_entry(cluster.journal, {"begun"}, worker.pid)
    return worker, job


async def test_stopping_worker_finishes_its_jobs_and_claims_no_new_ones(cluster: Cluster, log: Path) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        worker, job = await start_blocked(services, cluster, log, LONG)
        worker.send_signal(signal.SIGTERM)
        await wait_for_log(log, "worker.draining")
        later = await services.volumes.request_create(NewVolume("later", SMALL))
        cluster.gate().unlink()
        assert await exit_code(worker) == 0

        ended_job, later = (
            await services.jobs.get(job.id, project_id=DEFAULT_PROJECT),
            await services.jobs.get(later.id, project_id=DEFAULT_PROJECT),
        )
        assert (ended_job.status, ended_job.attempt, ended_job.epoch) == ("succeeded", 1, 0)
        assert (later.status, later.attempt, later.epoch) == ("queued", 0, 0)
        async with running_worker(cluster.settings):
            assert (await ended(services, later.id)).attempt == 1


async def test_job_unfinished_after_the_drain_is_released_without_an_attempt(cluster: Cluster, log: Path) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        worker, job = await start_blocked(services, cluster, log, "0")
        worker.send_signal(signal.SIGTERM)
        assert await exit_code(worker) == 0
        released = await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)
        assert (released.status, released.attempt, released.epoch) == ("queued", 0, 1)

        # With the default lease: on a busy machine a live worker may be later than the short one of these tests.
        async with running_worker(cluster.settings.model_copy(update={"lease_seconds": 15})):
            ended_job = await ended(services, job.id)
        assert (ended_job.status, ended_job.attempt, ended_job.error) == ("succeeded", 1, None)
        journal.assert_orderly(cluster.journal, ended_job)


async def test_second_sigterm_ends_the_drain(cluster: Cluster, log: Path) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        worker, job = await start_blocked(services, cluster, log, LONG)
        worker.send_signal(signal.SIGTERM)
        await wait_for_log(log, "worker.draining")
        worker.send_signal(signal.SIGTERM)
        assert await exit_code(worker) == 0

        released = await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)
        assert (released.status, released.attempt) == ("queued", 0)


async def test_kind_unknown_to_an_older_worker_runs_in_a_newer_one(cluster: Cluster, log: Path) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        older = start(cluster, log, "tests.acceptance.sabotage", SABOTAGE_KIND="volume.expand")
        volume_id = (await ended(services, (await services.volumes.request_create(NewVolume("v", SMALL))).id)).volume_id
        assert volume_id is not None
        began = time.monotonic()
        job = await services.volumes.request_expand(volume_id, Growth(to=LARGE))
        await wait_for_log(log, "UNCLAIMED")
        waiting = await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)
        assert (waiting.status, waiting.attempt, waiting.epoch) == ("queued", 0, 0)

        async with running_worker(cluster.settings):
            # The newer worker dispatches the job again, but the older one may consume that message too.
            ended_job = await ended(services, job.id)
        assert (ended_job.status, ended_job.attempt, ended_job.epoch) == ("succeeded", 1, 0)
        sweeps = (time.monotonic() - began) / (cluster.settings.lease_seconds / 3)
        assert log.read_text().count("UNCLAIMED") <= sweeps + 2, "the messages loop"
        assert all(entry.pid != older.pid for entry in journal.read(cluster.journal) if entry.operation == "expand")
        assert older.poll() is None
