"""A fault at each transition of a job, for each kind: another worker finishes it, and it takes effect once."""

import signal
from uuid import UUID

import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.errors import VolumeNotFound
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.acceptance import journal
from tests.acceptance.cluster import LARGE, SMALL, Cluster
from tests.acceptance.limits import LIMITED, allow_only, assert_limits_add_up
from tests.acceptance.sabotage import BULK_TRANSITIONS, MEASURING_TRANSITIONS, TRANSITIONS
from tests.acceptance.waiting import ended, exit_code
from tests.support.worker import running_worker

KINDS = ("volume.create", "volume.expand", "volume.delete")
#: The room that a job needs, and what it gives back.
NEEDS = {"volume.create": {"volumes": 1, "size": SMALL}, "volume.expand": {"size": LARGE - SMALL}, "volume.delete": {}}
GIVES_BACK = {"volume.delete": {"volumes": 1, "size": SMALL}}


async def request(services: Services, kind: str, volume_id: UUID | None, origin: RequestOrigin = ANONYMOUS) -> Job:
    if volume_id is None:
        return await services.volumes.request_create(NewVolume("target", SMALL), origin=origin)
    if kind == "volume.expand":
        return await services.volumes.request_expand(volume_id, Growth(to=LARGE), origin=origin)
    return await services.volumes.request_delete(volume_id, origin=origin)


async def prepare(services: Services, cluster: Cluster, kind: str) -> UUID | None:
    """Create the volume that the job needs, if any, and return its id."""
    if kind == "volume.create":
        return None
    async with running_worker(cluster.settings):
        job = await ended(services, (await services.volumes.request_create(NewVolume("target", SMALL))).id)
    return job.volume_id


async def assert_effect_once(services: Services, cluster: Cluster, kind: str, job: Job) -> None:
    assert job.status == "succeeded", job.error
    assert job.volume_id is not None
    data = cluster.volumes / str(job.volume_id) / "data"
    journal.assert_orderly(cluster.journal, job)
    if kind == "volume.delete":
        assert not data.parent.exists()
        with pytest.raises(VolumeNotFound):
            await services.volumes.get(job.volume_id, project_id=DEFAULT_PROJECT)
        return
    volume = await services.volumes.get(job.volume_id, project_id=DEFAULT_PROJECT)
    size = SMALL if kind == "volume.create" else LARGE
    assert (volume.state, volume.size, data.stat().st_size) == ("available", size, size)
    assert volume.version == job.params["fence_version"] + 1, "not recorded exactly once"
    assert [path.name for path in data.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("kind", KINDS)
async def test_job_of_a_worker_killed_at_any_transition_takes_effect_once(
    cluster: Cluster, kind: str, transition: str
) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        volume_id = await prepare(services, cluster, kind)
        await allow_only(services, **NEEDS[kind])
        victim = cluster.start_worker(
            "tests.acceptance.sabotage", SABOTAGE_TRANSITION=transition, SABOTAGE_FAULT="kill"
        )
        job = await request(services, kind, volume_id, LIMITED)
        assert await exit_code(victim) == -signal.SIGKILL

        async with running_worker(cluster.settings):
            await assert_effect_once(services, cluster, kind, await ended(services, job.id))
            await assert_limits_add_up(services, cluster.volumes, **GIVES_BACK.get(kind, {}))


@pytest.mark.parametrize("transition", TRANSITIONS)
async def test_redis_flushed_at_any_transition_changes_nothing(cluster: Cluster, transition: str) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        cluster.start_worker("tests.acceptance.sabotage", SABOTAGE_TRANSITION=transition, SABOTAGE_FAULT="flush")
        volume_id = None
        for kind in KINDS:
            job = await ended(services, (await request(services, kind, volume_id)).id)

            await assert_effect_once(services, cluster, kind, job)
            assert (job.attempt, job.epoch) == (1, 0), "the job ran more than once"
            volume_id = job.volume_id


async def test_message_lost_by_redis_before_delivery_is_dispatched_again(cluster: Cluster) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        job = await request(services, "volume.create", None)
        await services.queue.redis.flushall()

        async with running_worker(cluster.settings):
            await assert_effect_once(services, cluster, "volume.create", await ended(services, job.id))


def test_every_transition_names_an_existing_method() -> None:
    tables = TRANSITIONS | BULK_TRANSITIONS | MEASURING_TRANSITIONS
    assert all(callable(getattr(owner, name, None)) for owner, name, _ in tables.values())
