"""A fault at each transition of a job that makes or grows a file system: another worker finishes it."""

import signal
from pathlib import Path
from uuid import UUID

import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.acceptance.cluster import Cluster
from tests.acceptance.sabotage import TRANSITIONS
from tests.acceptance.waiting import ended, exit_code
from tests.support.bulk import MIB
from tests.support.filesystems import HAS_TOOLS, sound_ext4_bytes
from tests.support.worker import running_worker

pytestmark = pytest.mark.skipif(not HAS_TOOLS, reason="e2fsprogs is not installed")
KINDS = {"volume.create": 64 * MIB, "volume.expand": 128 * MIB}


async def request_create(services: Services) -> Job:
    return await services.volumes.request_create(NewVolume("target", 64 * MIB, columns={"filesystem": "ext4"}))


async def request(services: Services, cluster: Cluster, kind: str) -> Job:
    """Request a job; the volume that an expansion needs is created before."""
    if kind == "volume.create":
        return await request_create(services)
    async with running_worker(cluster.settings):
        created = await ended(services, (await request_create(services)).id)
    assert created.volume_id is not None
    return await services.volumes.request_expand(created.volume_id, Growth(to=128 * MIB))


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("kind", KINDS)
async def test_file_system_is_whole_after_a_worker_was_killed_at_any_transition(
    cluster: Cluster, kind: str, transition: str
) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        job = await request(services, cluster, kind)
        victim = cluster.start_worker(
            "tests.acceptance.sabotage", SABOTAGE_TRANSITION=transition, SABOTAGE_FAULT="kill"
        )
        assert await exit_code(victim) == -signal.SIGKILL

        async with running_worker(cluster.settings):
            job = await ended(services, job.id)

        assert job.status == "succeeded", job.error
        volume = await services.volumes.get(UUID(str(job.volume_id)), project_id=DEFAULT_PROJECT)
        data, size = Path(str(services.volumes.path(volume))), KINDS[kind]
        assert (volume.size, volume.filesystem_grown_to, volume.filesystem_error) == (size, size, None)
        assert sound_ext4_bytes(data) == data.stat().st_size == size
