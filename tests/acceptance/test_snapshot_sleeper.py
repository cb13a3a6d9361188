"""A sleeper in a snapshot job, resumed after another worker finished the job and the user wrote new data."""

import signal
from pathlib import Path

import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.jobs.model import Job
from domain.services import open_services
from tests.acceptance import journal
from tests.acceptance.cluster import Cluster
from tests.acceptance.test_sleeper import Aftermath, wake_up
from tests.acceptance.test_snapshot_transitions import SIZE, Scenario, prepare
from tests.acceptance.waiting import ended, wait_for_entry
from tests.support.forked import Process
from tests.support.worker import running_worker

USER_DATA = b"mine" * (SIZE // 4)


async def start_sleeper(scenario: Scenario, kind: str, without: str) -> tuple[Process, Job]:
    """Let a worker begin a job, and pause the worker before it publishes."""
    cluster = scenario.cluster
    cluster.gate().touch()
    sleeper = cluster.start_worker(
        "tests.acceptance.sabotage", url=cluster.url(gate=cluster.gate()), SABOTAGE_WITHOUT=without
    )
    job = await scenario.request(kind)
    await wait_for_entry(cluster.journal, {"begun"}, sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    return sleeper, job


async def rows(scenario: Scenario, job: Job) -> list[object]:
    volume = await scenario.services.volumes.get(scenario.volume_id, project_id=DEFAULT_PROJECT)
    return [
        (await scenario.services.jobs.get(job.id, project_id=DEFAULT_PROJECT)).version,
        volume.state,
        volume.size,
        volume.version,
    ]


def contents(scenario: Scenario) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in scenario.files()}


async def sleep_through(cluster: Cluster, kind: str, *, without: str) -> Aftermath:
    """Let another worker finish the job and the user go on, wake the sleeper up, and return its effects."""
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        scenario = await prepare(services, cluster)
        sleeper, job = await start_sleeper(scenario, kind, without)
        async with running_worker(cluster.settings):
            finished = await ended(services, job.id)
            assert finished.status == "succeeded"
            assert finished.epoch >= 1  # more, if the other worker was held up for longer than a lease
            await act_as_user(scenario, finished)
            before = (contents(scenario), await rows(scenario, job))

            await wake_up(cluster, sleeper)

            after = (contents(scenario), await rows(scenario, job))
            late = [entry for entry in journal.read(cluster.journal) if entry.pid == sleeper.pid]
            return Aftermath(before != after, sum(entry.event == "published" for entry in late))


async def act_as_user(scenario: Scenario, finished: Job) -> None:
    """Write into the restored volume, or delete the snapshot just taken."""
    if finished.kind == "snapshot.restore":
        scenario.data().write_bytes(USER_DATA)
    elif finished.kind == "snapshot.take":
        assert finished.snapshot_id is not None
        deletion = await scenario.services.snapshots.request_delete(finished.snapshot_id)
        assert (await ended(scenario.services, deletion.id)).status == "succeeded"


@pytest.mark.parametrize("without", ["", "clock"])
async def test_sleeper_does_not_restore_over_data_written_since(cluster: Cluster, without: str) -> None:
    assert await sleep_through(cluster, "snapshot.restore", without=without) == Aftermath(changed=False, published=0)


async def test_sleeper_without_clock_and_fence_restores_over_it(cluster: Cluster) -> None:
    aftermath = await sleep_through(cluster, "snapshot.restore", without="clock,fence")

    assert aftermath == Aftermath(changed=True, published=1)


async def test_sleeper_cannot_bring_a_deleted_snapshot_back(cluster: Cluster) -> None:
    aftermath = await sleep_through(cluster, "snapshot.take", without="clock")

    assert aftermath == Aftermath(changed=False, published=0)


@pytest.mark.slow
async def test_sleeper_without_clock_and_fence_brings_a_deleted_snapshot_back(cluster: Cluster) -> None:
    aftermath = await sleep_through(cluster, "snapshot.take", without="clock,fence")

    assert aftermath == Aftermath(changed=True, published=1)
