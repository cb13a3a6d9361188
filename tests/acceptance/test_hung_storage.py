"""Storage that does not answer: the job goes elsewhere, and the thread that wakes up too late publishes nothing."""

import asyncio
import os
import signal
from pathlib import Path
from uuid import UUID

import pytest

from domain.bulk.expand.policy import BulkExpandRequest, GrowthPolicy
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.growth import Growth
from domain.volumes.service import NewVolume
from tests.acceptance import journal
from tests.acceptance.cluster import LARGE, SMALL, Cluster
from tests.acceptance.waiting import ENDINGS, ended, exit_code, said, seen
from tests.support.forked import Process
from tests.support.worker import running_worker


@pytest.fixture
def hang(cluster: Cluster) -> Path:
    """A file that, as long as it exists, makes the storage of those workers hang that know of it."""
    return cluster.folder / "hang"


def events(cluster: Cluster, pid: int, *names: str) -> list[journal.Entry]:
    return [entry for entry in journal.read(cluster.journal) if entry.pid == pid and entry.event in names]


async def count_of(cluster: Cluster, pid: int, event: str, count: int) -> None:
    async with asyncio.timeout(60):
        while len(events(cluster, pid, event)) < count:
            await asyncio.sleep(0.02)


def start_stuck(cluster: Cluster, hang: Path, log: Path | None = None, **more: str) -> Process:
    """A worker whose storage hangs; its leases are so long that only a stall ends them, however busy the machine."""
    return cluster.start_worker(url=cluster.url(hang=hang), log=log, CISTERN_LEASE_SECONDS="6", **more)


async def create(services: Services, *names: str) -> list[UUID]:
    jobs = [await services.volumes.request_create(NewVolume(name, SMALL)) for name in names]
    return [(await ended(services, job.id)).volume_id or UUID(int=0) for job in jobs]


@pytest.mark.parametrize("without", ["", "clock"])
async def test_a_hung_expansion_goes_elsewhere_and_the_thread_that_wakes_up_publishes_nothing(
    cluster: Cluster, hang: Path, without: str
) -> None:
    async with open_services(cluster.settings) as services, services.watcher.watching():
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
        await seen(cluster.journal, {"hanging"}, stuck.pid)

        async with running_worker(cluster.settings):
            done = await ended(services, job.id)
        assert done.status == "succeeded"
        assert done.attempt > 1
        hang.unlink()
        await seen(cluster.journal, ENDINGS, stuck.pid)

        assert events(cluster, stuck.pid, "published") == []
        assert events(cluster, stuck.pid, "refused" if without else "stopped")
        journal.assert_orderly(cluster.journal, done)
        await create(services, "another")
        assert events(cluster, stuck.pid, "published"), "it goes on with other jobs"


async def bulk_of_six(services: Services, cluster: Cluster, max_concurrent: int) -> tuple[list[UUID], Job]:
    """Six volumes that shall grow, once there is a worker."""
    async with running_worker(cluster.settings):
        volumes = sorted(await create(services, *(f"v{number}" for number in range(6))))
    wanted = BulkExpandRequest(GrowthPolicy(to=LARGE), max_concurrent=max_concurrent)
    return volumes, await services.expansion.request_expand(wanted)


async def five_succeeded(services: Services, bulk: Job) -> None:
    async with asyncio.timeout(60):
        while (await services.jobs.get(bulk.id)).succeeded != 5:
            await asyncio.sleep(0.05)


async def test_one_hung_volume_of_a_chunk_holds_up_no_other_and_is_grown_elsewhere(
    cluster: Cluster, hang: Path
) -> None:
    async with open_services(cluster.settings) as services, services.watcher.watching():
        volumes, bulk = await bulk_of_six(services, cluster, max_concurrent=16)
        hang.write_text(str(volumes[2]))
        stuck = start_stuck(cluster, hang, CISTERN_STALL_SECONDS="3")
        await five_succeeded(services, bulk)
        assert (await services.volumes.get(volumes[2])).state == "expanding"

        async with running_worker(cluster.settings):
            done = await ended(services, bulk.id)
        hang.unlink()
        await seen(cluster.journal, {"stopped"}, stuck.pid)

        assert (done.status, done.succeeded, done.total) == ("succeeded", 6, 6)
        grown = [entry for entry in journal.published(cluster.journal, volumes[2]) if entry.operation == "expand"]
        assert [entry.pid for entry in grown] == [os.getpid()]
        await create(services, "another")
        assert any(entry.operation == "create" for entry in events(cluster, stuck.pid, "published"))


async def test_where_it_hangs_in_every_worker_the_others_of_a_narrow_lane_come_past_it(
    cluster: Cluster, hang: Path
) -> None:
    async with open_services(cluster.settings) as services, services.watcher.watching():
        volumes, bulk = await bulk_of_six(services, cluster, max_concurrent=2)
        hang.write_text(str(volumes[2]))
        for _ in range(2):
            start_stuck(cluster, hang, CISTERN_STALL_SECONDS="2")
        await five_succeeded(services, bulk)
        hang.unlink()

        assert (await ended(services, bulk.id)).status == "succeeded"


async def test_a_worker_whose_slots_all_hang_says_so_keeps_house_and_goes_on_when_storage_answers(
    cluster: Cluster, hang: Path
) -> None:
    log = cluster.folder / "log"
    async with open_services(cluster.settings) as services, services.watcher.watching():
        hang.touch()
        stuck = cluster.start_worker(
            url=cluster.url(hang=hang), log=log, CISTERN_MAX_JOBS="2", CISTERN_STALL_SECONDS="1"
        )
        jobs = [await services.volumes.request_create(NewVolume(f"v{number}", SMALL)) for number in range(3)]
        await said(log, "worker.stuck")
        async with asyncio.timeout(60):  # housekeeping puts back what the heartbeat lets go
            while sum([(await services.jobs.get(job.id)).epoch > 0 for job in jobs]) < 2:
                await asyncio.sleep(0.05)
        assert stuck.poll() is None
        assert len(events(cluster, stuck.pid, "hanging")) == 2
        hang.unlink()
        done = [await ended(services, job.id) for job in jobs]

        assert {job.status for job in done} == {"succeeded"}
        assert log.read_text().count("job.stalled") == 2
        assert log.read_text().count("worker.stuck") == 1
        assert all(str(event.job_id) in log.read_text() for event in events(cluster, stuck.pid, "hanging"))


async def test_a_hung_job_does_not_take_one_slot_after_the_other(cluster: Cluster, hang: Path) -> None:
    log = cluster.folder / "log"
    async with open_services(cluster.settings) as services, services.watcher.watching():
        hang.touch()
        stuck = start_stuck(cluster, hang, log, CISTERN_STALL_SECONDS="1", CISTERN_LOG_LEVEL="debug")
        job = await services.volumes.request_create(NewVolume("held", SMALL))
        await said(log, "job.stalled_here")
        assert len(events(cluster, stuck.pid, "hanging")) == 1
        hang.unlink()
        done = await ended(services, job.id)

        assert (done.status, done.attempt) == ("succeeded", 2)


async def test_a_worker_with_a_hung_thread_ends_at_sigterm_and_says_what_it_leaves(
    cluster: Cluster, hang: Path
) -> None:
    log = cluster.folder / "log"
    async with open_services(cluster.settings) as services, services.watcher.watching():
        hang.touch()
        stuck = cluster.start_worker(url=cluster.url(hang=hang), log=log, CISTERN_DRAIN_SECONDS="0")
        job = await services.volumes.request_create(NewVolume("held", SMALL))
        await seen(cluster.journal, {"hanging"}, stuck.pid)
        stuck.send_signal(signal.SIGTERM)
        assert await exit_code(stuck) == os.EX_TEMPFAIL

        (left,) = [line for line in log.read_text().splitlines() if "worker.forced_exit" in line]
        assert str(job.id) in left
        async with running_worker(cluster.settings):
            done = await ended(services, job.id)
        assert done.status == "succeeded"
        assert done.attempt > 1, "what is left costs an attempt"
        journal.assert_orderly(cluster.journal, done)
