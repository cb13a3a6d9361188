"""A sleeper: a worker paused by SIGSTOP in the middle of a job, and resumed after another one has finished it."""

import signal
from dataclasses import dataclass
from uuid import UUID

import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import PageRequest
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.repository import VolumeFilter
from tests.acceptance import journal
from tests.acceptance.cluster import Cluster
from tests.acceptance.test_job_transitions import prepare, request
from tests.acceptance.waiting import ENDINGS, ended, exit_code, wait_for_entry
from tests.support.forked import Process
from tests.support.worker import running_worker


async def start_sleeper(services: Services, cluster: Cluster, kind: str, without: str) -> tuple[Process, Job]:
    """Let a worker begin a job, and pause the worker before it publishes."""
    volume_id = await prepare(services, cluster, kind)
    cluster.gate().touch()
    sleeper = cluster.start_worker(
        "tests.acceptance.sabotage", url=cluster.url(gate=cluster.gate()), SABOTAGE_WITHOUT=without
    )
    job = await request(services, kind, volume_id)
    await wait_for_entry(cluster.journal, {"begun"}, sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    return sleeper, job


async def wake_up(cluster: Cluster, sleeper: Process) -> None:
    """Resume the worker, and wait until it has tried to publish."""
    cluster.gate().unlink()
    sleeper.send_signal(signal.SIGCONT)
    await wait_for_entry(cluster.journal, ENDINGS, sleeper.pid)
    sleeper.send_signal(signal.SIGTERM)
    assert await exit_code(sleeper) == 0


def on_disk(cluster: Cluster) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in cluster.volumes.rglob("*") if path.name.startswith("data")}


async def rows(services: Services, job_id: UUID) -> list[object]:
    job = await services.jobs.get(job_id, project_id=DEFAULT_PROJECT)
    volumes = await services.volumes.list_volumes(VolumeFilter(), PageRequest("all"), project_id=DEFAULT_PROJECT)
    return [(job.status, job.version), [(volume.state, volume.size, volume.version) for volume in volumes.items]]


@dataclass(frozen=True)
class Aftermath:
    """The effects of a sleeper after it woke up."""

    changed: bool
    published: int


async def sleep_through(cluster: Cluster, kind: str, *, without: str, then_delete: bool = False) -> Aftermath:
    """Let another worker finish the sleeper's job, wake the sleeper up, and return its effects."""
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        sleeper, job = await start_sleeper(services, cluster, kind, without)
        async with running_worker(cluster.settings):
            finished = await ended(services, job.id)
            assert finished.status == "succeeded"
            assert finished.epoch >= 1  # more, if the other worker was held up for longer than a lease
            if then_delete:
                assert finished.volume_id is not None
                await ended(services, (await services.volumes.request_delete(finished.volume_id)).id)
            before = (on_disk(cluster), await rows(services, job.id))

            await wake_up(cluster, sleeper)

            after = (on_disk(cluster), await rows(services, job.id))
            late = [entry for entry in journal.read(cluster.journal) if entry.pid == sleeper.pid]
            return Aftermath(before != after, sum(entry.event == "published" for entry in late))


@pytest.mark.parametrize(
    ("kind", "without"),
    [("volume.create", "clock"), ("volume.expand", "clock"), ("volume.delete", "clock"), ("volume.expand", "")],
)
async def test_sleeper_that_wakes_up_changes_neither_rows_nor_files(cluster: Cluster, kind: str, without: str) -> None:
    assert await sleep_through(cluster, kind, without=without) == Aftermath(changed=False, published=0)


async def test_sleeper_cannot_bring_a_deleted_volume_back(cluster: Cluster) -> None:
    aftermath = await sleep_through(cluster, "volume.create", without="clock", then_delete=True)

    assert aftermath == Aftermath(changed=False, published=0)


async def test_sleeper_without_clock_and_fence_brings_a_deleted_volume_back(cluster: Cluster) -> None:
    aftermath = await sleep_through(cluster, "volume.create", without="clock,fence", then_delete=True)

    assert aftermath == Aftermath(changed=True, published=1)
