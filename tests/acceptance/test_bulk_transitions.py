"""A worker killed at each transition of a bulk job: the job ends, and every volume is changed exactly once."""

import signal
from pathlib import Path
from uuid import UUID

import pytest

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.bulk.snapshot import BulkSnapshotRequest
from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import PageRequest
from domain.services import Services, open_services
from domain.snapshots.repository import SnapshotFilter
from domain.volumes.repository import VolumeFilter
from domain.volumes.service import NewVolume
from tests.acceptance import journal
from tests.acceptance.cluster import Cluster
from tests.acceptance.limits import LIMITED, allow_only, assert_limits_add_up
from tests.acceptance.sabotage import BULK_TRANSITIONS, MEASURING_TRANSITIONS
from tests.acceptance.waiting import exit_code
from tests.support.bulk import MIB, ended
from tests.support.worker import running_worker

VOLUMES = 12


async def prepare(services: Services, cluster: Cluster) -> None:
    async with running_worker(cluster.settings):
        jobs = [await services.volumes.request_create(NewVolume(f"v{number}", MIB)) for number in range(VOLUMES)]
        for job in jobs:
            await ended(services, job)


def acquisitions(path: Path) -> set[tuple[UUID, int]]:
    """Return each acquisition of a volume for an expansion, identified by the version in its fence."""
    return {(entry.volume_id, entry.fence[0]) for entry in journal.read(path) if entry.operation == "expand"}


@pytest.mark.parametrize("transition", BULK_TRANSITIONS)
async def test_bulk_survives_a_worker_killed_at_any_transition(cluster: Cluster, transition: str) -> None:
    await assert_survives(cluster, transition, GrowthPolicy(by=MIB))


@pytest.mark.parametrize("transition", MEASURING_TRANSITIONS)
async def test_measuring_bulk_survives_a_worker_killed_at_any_transition(cluster: Cluster, transition: str) -> None:
    await assert_survives(cluster, transition, GrowthPolicy(by=MIB, usage_above=50))


async def assert_survives(cluster: Cluster, transition: str, policy: GrowthPolicy) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        await prepare(services, cluster)
        await allow_only(services, size=VOLUMES * MIB)
        for volume in (
            await services.volumes.list_volumes(VolumeFilter(), PageRequest("all"), project_id=DEFAULT_PROJECT)
        ).items:
            Path(str(services.volumes.path(volume))).write_bytes(b"x" * MIB)
        victim = cluster.start_worker(
            "tests.acceptance.sabotage", SABOTAGE_TRANSITION=transition, SABOTAGE_FAULT="kill"
        )
        job = await services.bulk.request(BulkExpandRequest(policy, max_concurrent=3), origin=LIMITED)
        assert await exit_code(victim) == -signal.SIGKILL

        async with running_worker(cluster.settings):
            job = await ended(services, job)
            await assert_limits_add_up(services, cluster.volumes)

        volumes = (
            await services.volumes.list_volumes(VolumeFilter(), PageRequest("all"), project_id=DEFAULT_PROJECT)
        ).items
        assert (job.status, job.succeeded, job.failed, job.skipped) == ("succeeded", VOLUMES, 0, 0)
        assert {(volume.state, volume.size) for volume in volumes} == {("available", 2 * MIB)}
        assert {Path(str(services.volumes.path(volume))).stat().st_size for volume in volumes} == {2 * MIB}
        assert acquisitions(cluster.journal) == {(volume.id, 3) for volume in volumes}, (
            "a volume was not acquired exactly once"
        )


@pytest.mark.parametrize("transition", BULK_TRANSITIONS)
async def test_bulk_snapshot_survives_a_worker_killed_at_any_transition(cluster: Cluster, transition: str) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        await prepare(services, cluster)
        await allow_only(services, snapshots=VOLUMES)
        victim = cluster.start_worker(
            "tests.acceptance.sabotage", SABOTAGE_TRANSITION=transition, SABOTAGE_FAULT="kill"
        )
        job = await services.bulk.request(BulkSnapshotRequest("nightly", max_concurrent=3), origin=LIMITED)
        assert await exit_code(victim) == -signal.SIGKILL

        async with running_worker(cluster.settings):
            job = await ended(services, job)
            await assert_limits_add_up(services, cluster.volumes)

        volumes = (
            await services.volumes.list_volumes(VolumeFilter(), PageRequest("all"), project_id=DEFAULT_PROJECT)
        ).items
        snapshots = (
            await services.snapshots.list_snapshots(SnapshotFilter(), PageRequest("all"), project_id=DEFAULT_PROJECT)
        ).items
        assert (job.status, job.succeeded, job.failed, job.skipped) == ("succeeded", VOLUMES, 0, 0)
        assert {(volume.state, volume.size) for volume in volumes} == {("available", MIB)}
        assert {(snapshot.state, snapshot.size, snapshot.job_id) for snapshot in snapshots} == {("ready", MIB, None)}
        assert sorted(snapshot.volume_id for snapshot in snapshots) == sorted(volume.id for volume in volumes), (
            "a volume has not exactly one"
        )
        on_disk = sorted(path.name for path in cluster.volumes.glob("*/snapshots/*"))
        assert on_disk == sorted(str(snapshot.id) for snapshot in snapshots), "files are left over"


@pytest.mark.parametrize("transition", BULK_TRANSITIONS)
async def test_bulk_with_room_for_seven_grows_seven_though_a_worker_is_killed_at_any_transition(
    cluster: Cluster, transition: str
) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        await prepare(services, cluster)
        await allow_only(services, size=7 * MIB)
        victim = cluster.start_worker(
            "tests.acceptance.sabotage", SABOTAGE_TRANSITION=transition, SABOTAGE_FAULT="kill"
        )
        job = await services.bulk.request(BulkExpandRequest(GrowthPolicy(by=MIB), max_concurrent=3), origin=LIMITED)
        assert await exit_code(victim) == -signal.SIGKILL

        async with running_worker(cluster.settings):
            job = await ended(services, job)
            await assert_limits_add_up(services, cluster.volumes)

        assert (job.succeeded, job.failed) == (7, VOLUMES - 7)
