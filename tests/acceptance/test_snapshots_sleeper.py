"""A worker stopped in the middle of a restore, who wakes up when others have restored and users have written."""

import signal
from pathlib import Path

import pytest

from domain.jobs.model import Job
from domain.services import open_services
from tests.acceptance import journal
from tests.acceptance.cluster import Cluster
from tests.acceptance.test_sleeper import Aftermath, wake_up
from tests.acceptance.test_snapshots_every_arrow import SIZE, Scene, prepare
from tests.acceptance.waiting import ended, seen
from tests.support.forked import Process
from tests.support.worker import running_worker

PING_KEY = b"mine" * (SIZE // 4)


async def fall_asleep(scene: Scene, kind: str, without: str) -> tuple[Process, Job]:
    """Have a worker begin a job and stop it before it publishes."""
    cluster = scene.cluster
    cluster.gate().touch()
    sleeper = cluster.start_worker(
        "tests.acceptance.sabotage", url=cluster.url(gate=cluster.gate()), SABOTAGE_WITHOUT=without
    )
    job = await scene.request(kind)
    await seen(cluster.journal, {"begun"}, sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    return sleeper, job


async def rows(scene: Scene, job: Job) -> list[object]:
    volume = await scene.services.volumes.get(scene.volume_id)
    return [(await scene.services.jobs.get(job.id)).version, volume.state, volume.size, volume.version]


def contents(scene: Scene) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in scene.files()}


async def sleep_through(cluster: Cluster, kind: str, *, without: str) -> Aftermath:
    """Have another worker finish the sleeper's job and the user go on, wake the sleeper up, and see."""
    async with open_services(cluster.settings) as services, services.watcher.watching():
        scene = await prepare(services, cluster)
        sleeper, job = await fall_asleep(scene, kind, without)
        async with running_worker(cluster.settings):
            finished = await ended(services, job.id)
            assert (finished.status, finished.epoch) == ("succeeded", 1)
            await go_on(scene, finished)
            before = (contents(scene), await rows(scene, job))

            await wake_up(cluster, sleeper)

            after = (contents(scene), await rows(scene, job))
            late = [entry for entry in journal.read(cluster.journal) if entry.pid == sleeper.pid]
            return Aftermath(before != after, sum(entry.event == "published" for entry in late))


async def go_on(scene: Scene, finished: Job) -> None:
    """Write into a volume that was restored; delete a snapshot that was taken."""
    if finished.kind == "snapshot.restore":
        scene.data().write_bytes(PING_KEY)
    elif finished.kind == "snapshot.take":
        assert finished.snapshot_id is not None
        deleting = await scene.services.snapshots.request_delete(finished.snapshot_id)
        assert (await ended(scene.services, deleting.id)).status == "succeeded"


@pytest.mark.parametrize("without", ["", "clock"])
async def test_a_sleeper_that_wakes_up_does_not_restore_over_what_was_written_since(
    cluster: Cluster, without: str
) -> None:
    assert await sleep_through(cluster, "snapshot.restore", without=without) == Aftermath(changed=False, published=0)


async def test_with_clock_and_fence_taken_out_the_sleeper_does_restore_over_it(cluster: Cluster) -> None:
    aftermath = await sleep_through(cluster, "snapshot.restore", without="clock,fence")

    assert aftermath == Aftermath(changed=True, published=1)


async def test_a_sleeper_cannot_bring_a_deleted_snapshot_back(cluster: Cluster) -> None:
    aftermath = await sleep_through(cluster, "snapshot.take", without="clock")

    assert aftermath == Aftermath(changed=False, published=0)


async def test_with_clock_and_fence_taken_out_the_sleeper_does_bring_it_back(cluster: Cluster) -> None:
    aftermath = await sleep_through(cluster, "snapshot.take", without="clock,fence")

    assert aftermath == Aftermath(changed=True, published=1)
