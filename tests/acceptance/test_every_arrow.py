"""A blow at each arrow of a job's life, for each kind: another worker finishes, and the effect is there once."""

import signal
from uuid import UUID

import pytest

from domain.errors import VolumeNotFound
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.growth import Growth
from domain.volumes.service import NewVolume
from tests.acceptance import journal
from tests.acceptance.cluster import LARGE, SMALL, Cluster
from tests.acceptance.sabotage import ARROWS
from tests.acceptance.waiting import ended, exit_code
from tests.support.worker import running_worker

KINDS = ("volume.create", "volume.expand", "volume.delete")


async def request(services: Services, kind: str, volume_id: UUID | None) -> Job:
    if volume_id is None:
        return await services.volumes.request_create(NewVolume("struck", SMALL))
    if kind == "volume.expand":
        return await services.volumes.request_expand(volume_id, Growth(to=LARGE))
    return await services.volumes.request_delete(volume_id)


async def prepare(services: Services, cluster: Cluster, kind: str) -> UUID | None:
    """The volume that the job is about, if it must be there before."""
    if kind == "volume.create":
        return None
    async with running_worker(cluster.settings):
        job = await ended(services, (await services.volumes.request_create(NewVolume("struck", SMALL))).id)
    return job.volume_id


async def assert_effect_once(services: Services, cluster: Cluster, kind: str, job: Job) -> None:
    assert job.status == "succeeded", job.error
    assert job.volume_id is not None
    data = cluster.volumes / str(job.volume_id) / "data"
    journal.assert_orderly(cluster.journal, job)
    if kind == "volume.delete":
        assert not data.parent.exists()
        with pytest.raises(VolumeNotFound):
            await services.volumes.get(job.volume_id)
        return
    volume = await services.volumes.get(job.volume_id)
    size = SMALL if kind == "volume.create" else LARGE
    assert (volume.state, volume.size, data.stat().st_size) == ("available", size, size)
    assert volume.version == job.params["fence"] + 1, "recorded once"
    assert [path.name for path in data.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("arrow", ARROWS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_worker_killed_at_any_arrow_is_replaced_and_the_effect_is_there_once(
    cluster: Cluster, kind: str, arrow: str
) -> None:
    async with open_services(cluster.settings) as services, services.watcher.watching():
        volume_id = await prepare(services, cluster, kind)
        victim = cluster.start_worker("tests.acceptance.sabotage", SABOTAGE_ARROW=arrow, SABOTAGE_BLOW="kill")
        job = await request(services, kind, volume_id)
        assert await exit_code(victim) == -signal.SIGKILL

        async with running_worker(cluster.settings):
            await assert_effect_once(services, cluster, kind, await ended(services, job.id))


@pytest.mark.parametrize("arrow", ARROWS)
async def test_redis_emptied_at_any_arrow_changes_nothing(cluster: Cluster, arrow: str) -> None:
    async with open_services(cluster.settings) as services, services.watcher.watching():
        cluster.start_worker("tests.acceptance.sabotage", SABOTAGE_ARROW=arrow, SABOTAGE_BLOW="flush")
        volume_id = None
        for kind in KINDS:
            job = await ended(services, (await request(services, kind, volume_id)).id)

            await assert_effect_once(services, cluster, kind, job)
            assert (job.attempt, job.epoch) == (1, 0), "nobody had to do it again"
            volume_id = job.volume_id


async def test_a_ring_that_redis_loses_before_anybody_hears_it_is_rung_again(cluster: Cluster) -> None:
    async with open_services(cluster.settings) as services, services.watcher.watching():
        job = await request(services, "volume.create", None)
        await services.queue.redis.flushall()

        async with running_worker(cluster.settings):
            await assert_effect_once(services, cluster, "volume.create", await ended(services, job.id))


def test_every_arrow_still_points_at_something() -> None:
    assert all(callable(getattr(owner, name)) for owner, name, _ in ARROWS.values())
