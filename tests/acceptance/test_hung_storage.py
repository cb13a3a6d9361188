"""Storage that hangs: another worker runs the job, and the thread that resumes too late publishes nothing."""

import asyncio
import os
import signal
from pathlib import Path
from uuid import UUID

import pytest

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.db.base import DEFAULT_PROJECT
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.acceptance import journal
from tests.acceptance.cluster import LARGE, SMALL, Cluster
from tests.acceptance.waiting import ENDINGS, ended, exit_code, wait_for_entry, wait_for_log
from tests.support.forked import Process
from tests.support.worker import running_worker


@pytest.fixture
def hang(cluster: Cluster) -> Path:
    """A file; while it exists, the storage of workers configured with it hangs."""
    return cluster.folder / "hang"


def events(cluster: Cluster, pid: int, *names: str) -> list[journal.Entry]:
    return [entry for entry in journal.read(cluster.journal) if entry.pid == pid and entry.event in names]


def start_stuck(cluster: Cluster, hang: Path, log: Path | None = None, **extra: str) -> Process:
    """Start a worker whose storage hangs, with leases long enough to end only by a stall, even on a busy machine."""
    return cluster.start_worker(url=cluster.url(hang=hang), log=log, CISTERN_LEASE_SECONDS="6", **extra)


async def create(services: Services, *names: str) -> list[UUID]:
    jobs = [await services.volumes.request_create(NewVolume(name, SMALL)) for name in names]
    return [(await ended(services, job.id)).volume_id or UUID(int=0) for job in jobs]


@pytest.mark.parametrize("without", ["", "clock"])
async def test_hung_expansion_runs_elsewhere_and_the_resumed_thread_publishes_nothing(
    cluster: Cluster, hang: Path, without: str
) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        async with running_worker(cluster.settings):
            (volume_id,) = await create(services, "held")
        hang.touch()
        stuck = cluster.start_worker(
            "tests.acceptance.sabotage",
            url=cluster.url(hang=hang),
            SABOTAGE_WITHOUT=without,
            CISTERN_STALL_SECONDS="1",
        )
        job = await services.volumes.request_expand(volume_id, Growth(to=LARGE))
        await wait_for_entry(cluster.journal, {"hanging"}, stuck.pid)

        async with running_worker(cluster.settings):
            ended_job = await ended(services, job.id)
        assert ended_job.status == "succeeded"
        assert ended_job.attempt > 1
        hang.unlink()
        await wait_for_entry(cluster.journal, ENDINGS, stuck.pid)

        assert events(cluster, stuck.pid, "published") == []
        assert events(cluster, stuck.pid, "refused" if without else "stopped")
        journal.assert_orderly(cluster.journal, ended_job)
        await create(services, "another")
        assert events(cluster, stuck.pid, "published"), "the worker runs no other jobs"


async def bulk_of_six(services: Services, cluster: Cluster, max_concurrent: int) -> tuple[list[UUID], Job]:
    """Create six volumes, and request their expansion while no worker is running."""
    async with running_worker(cluster.settings):
        volumes = sorted(await create(services, *(f"v{number}" for number in range(6))))
    request = BulkExpandRequest(GrowthPolicy(to=LARGE), max_concurrent=max_concurrent)
    return volumes, await services.bulk.request(request)


async def wait_until_five_succeeded(services: Services, bulk: Job) -> None:
    async with asyncio.timeout(60):
        while (await services.jobs.get(bulk.id, project_id=DEFAULT_PROJECT)).succeeded != 5:
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_hung_volume_of_a_chunk_blocks_no_other_and_is_expanded_elsewhere(cluster: Cluster, hang: Path) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        volumes, bulk = await bulk_of_six(services, cluster, max_concurrent=16)
        hang.write_text(str(volumes[2]))
        stuck = start_stuck(cluster, hang, CISTERN_STALL_SECONDS="3")
        await wait_until_five_succeeded(services, bulk)
        assert (await services.volumes.get(volumes[2], project_id=DEFAULT_PROJECT)).state == "expanding"

        async with running_worker(cluster.settings):
            ended_job = await ended(services, bulk.id)
        hang.unlink()
        await wait_for_entry(cluster.journal, {"stopped"}, stuck.pid)

        assert (ended_job.status, ended_job.succeeded, ended_job.total) == ("succeeded", 6, 6)
        grown = [entry for entry in journal.published(cluster.journal, volumes[2]) if entry.operation == "expand"]
        assert [entry.pid for entry in grown] == [os.getpid()]
        await create(services, "another")
        assert any(entry.operation == "create" for entry in events(cluster, stuck.pid, "published"))


@pytest.mark.slow
async def test_volume_that_hangs_in_every_worker_does_not_block_a_narrow_lane(cluster: Cluster, hang: Path) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        volumes, bulk = await bulk_of_six(services, cluster, max_concurrent=2)
        hang.write_text(str(volumes[2]))
        for _ in range(2):
            start_stuck(cluster, hang, CISTERN_STALL_SECONDS="2")
        await wait_until_five_succeeded(services, bulk)
        hang.unlink()

        assert (await ended(services, bulk.id)).status == "succeeded"


async def test_worker_with_all_slots_hung_logs_it_runs_maintenance_and_recovers(cluster: Cluster, hang: Path) -> None:
    log = cluster.folder / "log"
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        hang.touch()
        stuck = cluster.start_worker(
            url=cluster.url(hang=hang), log=log, CISTERN_MAX_JOBS="2", CISTERN_STALL_SECONDS="1"
        )
        jobs = [await services.volumes.request_create(NewVolume(f"v{number}", SMALL)) for number in range(3)]
        await wait_for_log(log, "worker.stuck")
        async with asyncio.timeout(60):  # maintenance requeues the jobs whose leases the heartbeat stopped renewing
            while sum([(await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)).epoch > 0 for job in jobs]) < 2:
                await asyncio.sleep(0.05)
        assert stuck.poll() is None
        assert len(events(cluster, stuck.pid, "hanging")) == 2
        hang.unlink()
        ended_jobs = [await ended(services, job.id) for job in jobs]

        assert {job.status for job in ended_jobs} == {"succeeded"}
        assert log.read_text().count("job.stalled") == 2
        assert log.read_text().count("worker.stuck") == 1
        assert all(str(event.job_id) in log.read_text() for event in events(cluster, stuck.pid, "hanging"))


async def test_hung_job_does_not_occupy_a_second_slot(cluster: Cluster, hang: Path) -> None:
    log = cluster.folder / "log"
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        hang.touch()
        stuck = start_stuck(cluster, hang, log, CISTERN_STALL_SECONDS="1", CISTERN_LOG_LEVEL="debug")
        job = await services.volumes.request_create(NewVolume("held", SMALL))
        await wait_for_log(log, "job.stalled_here")
        assert len(events(cluster, stuck.pid, "hanging")) == 1
        hang.unlink()
        ended_job = await ended(services, job.id)

        assert (ended_job.status, ended_job.attempt) == ("succeeded", 2)


async def test_worker_with_a_hung_thread_exits_on_sigterm_and_logs_its_abandoned_jobs(
    cluster: Cluster, hang: Path
) -> None:
    log = cluster.folder / "log"
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        hang.touch()
        stuck = cluster.start_worker(url=cluster.url(hang=hang), log=log, CISTERN_DRAIN_SECONDS="0")
        job = await services.volumes.request_create(NewVolume("held", SMALL))
        await wait_for_entry(cluster.journal, {"hanging"}, stuck.pid)
        stuck.send_signal(signal.SIGTERM)
        assert await exit_code(stuck) == os.EX_TEMPFAIL

        (forced_exit,) = [line for line in log.read_text().splitlines() if "worker.forced_exit" in line]
        assert str(job.id) in forced_exit
        async with running_worker(cluster.settings):
            ended_job = await ended(services, job.id)
        assert ended_job.status == "succeeded"
        assert ended_job.attempt > 1, "an abandoned job must cost an attempt"
        journal.assert_orderly(cluster.journal, ended_job)
