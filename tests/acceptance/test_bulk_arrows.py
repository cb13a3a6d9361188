"""A worker killed at each arrow of a bulk job: it ends by itself, the ledger adds up, and each volume had it once."""

import signal
from pathlib import Path
from uuid import UUID

import pytest

from domain.bulk.expand.policy import BulkExpandRequest, GrowthPolicy
from domain.bulk.snapshot.request import BulkSnapshotRequest
from domain.db.pagination import PageRequest
from domain.services import Services, open_services
from domain.snapshots.repository import SnapshotFilter
from domain.volumes.repository import VolumeFilter
from domain.volumes.service import NewVolume
from tests.acceptance import journal
from tests.acceptance.cluster import Cluster
from tests.acceptance.sabotage import BULK_ARROWS, MEASURING_ARROWS
from tests.acceptance.waiting import exit_code
from tests.support.bulk import MIB, ended
from tests.support.worker import running_worker

VOLUMES = 12


async def prepare(services: Services, cluster: Cluster) -> None:
    async with running_worker(cluster.settings):
        jobs = [await services.volumes.request_create(NewVolume(f"v{number}", MIB)) for number in range(VOLUMES)]
        for job in jobs:
            await ended(services, job)


def taken(path: Path) -> set[tuple[UUID, int]]:
    """Each time that a volume was taken for growing: its version in the fence says which."""
    return {(entry.volume_id, entry.fence[0]) for entry in journal.read(path) if entry.operation == "expand"}


@pytest.mark.parametrize("arrow", BULK_ARROWS)
async def test_a_bulk_outlives_a_worker_killed_at_any_arrow(cluster: Cluster, arrow: str) -> None:
    await outlives(cluster, arrow, GrowthPolicy(by=MIB))


@pytest.mark.parametrize("arrow", MEASURING_ARROWS)
async def test_a_bulk_that_measures_outlives_a_worker_killed_around_it(cluster: Cluster, arrow: str) -> None:
    await outlives(cluster, arrow, GrowthPolicy(by=MIB, usage_above=50))


async def outlives(cluster: Cluster, arrow: str, policy: GrowthPolicy) -> None:
    async with open_services(cluster.settings) as services, services.watcher.watching():
        await prepare(services, cluster)
        for volume in (await services.volumes.list_volumes(VolumeFilter(), PageRequest("all"))).items:
            Path(str(services.volumes.path(volume))).write_bytes(b"x" * MIB)
        victim = cluster.start_worker("tests.acceptance.sabotage", SABOTAGE_ARROW=arrow, SABOTAGE_BLOW="kill")
        job = await services.expansion.request_expand(BulkExpandRequest(policy, max_concurrent=3))
        assert await exit_code(victim) == -signal.SIGKILL

        async with running_worker(cluster.settings):
            job = await ended(services, job)

        volumes = (await services.volumes.list_volumes(VolumeFilter(), PageRequest("all"))).items
        assert (job.status, job.succeeded, job.failed, job.skipped) == ("succeeded", VOLUMES, 0, 0)
        assert {(volume.state, volume.size) for volume in volumes} == {("available", 2 * MIB)}
        assert {Path(str(services.volumes.path(volume))).stat().st_size for volume in volumes} == {2 * MIB}
        assert taken(cluster.journal) == {(volume.id, 3) for volume in volumes}, "once each"


@pytest.mark.parametrize("arrow", BULK_ARROWS)
async def test_a_bulk_snapshot_outlives_a_worker_killed_at_any_arrow(cluster: Cluster, arrow: str) -> None:
    async with open_services(cluster.settings) as services, services.watcher.watching():
        await prepare(services, cluster)
        victim = cluster.start_worker("tests.acceptance.sabotage", SABOTAGE_ARROW=arrow, SABOTAGE_BLOW="kill")
        job = await services.bulk_snapshots.request_snapshots(BulkSnapshotRequest("struck", max_concurrent=3))
        assert await exit_code(victim) == -signal.SIGKILL

        async with running_worker(cluster.settings):
            job = await ended(services, job)

        volumes = (await services.volumes.list_volumes(VolumeFilter(), PageRequest("all"))).items
        snapshots = (await services.snapshots.list_snapshots(SnapshotFilter(), PageRequest("all"))).items
        assert (job.status, job.succeeded, job.failed, job.skipped) == ("succeeded", VOLUMES, 0, 0)
        assert {(volume.state, volume.size) for volume in volumes} == {("available", MIB)}
        assert {(one.state, one.size, one.job_id) for one in snapshots} == {("ready", MIB, None)}
        assert sorted(one.volume_id for one in snapshots) == sorted(volume.id for volume in volumes), "one each"
        on_disk = sorted(path.name for path in cluster.volumes.glob("*/snapshots/*"))
        assert on_disk == sorted(str(one.id) for one in snapshots), "and nothing is left over"
