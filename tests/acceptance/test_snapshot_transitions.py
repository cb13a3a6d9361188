"""A fault at each transition of a snapshot job: another worker finishes it, and it takes effect once."""

import signal
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.errors import SnapshotNotFound
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.service import NewVolume
from tests.acceptance import journal
from tests.acceptance.cluster import Cluster
from tests.acceptance.limits import LIMITED, allow_only, assert_limits_add_up
from tests.acceptance.sabotage import CLONING_TRANSITIONS, TRANSITIONS
from tests.acceptance.waiting import ended, exit_code
from tests.support.worker import running_worker

SIZE = 1 << 20
OLD, NEW = b"old!" * (SIZE // 4), b"new?" * (SIZE // 4)
#: The room that a job needs, and what it gives back.
NEEDS = {
    "snapshot.take": {"snapshots": 1},
    "snapshot.restore": {},
    "snapshot.delete": {},
    "snapshot.clone": {"volumes": 1, "size": 2 * SIZE},
    "volume.clone": {"volumes": 1, "size": 2 * SIZE},
}
HOLD_THE_VOLUME = ("snapshot.take", "snapshot.restore", "volume.clone")
GIVES_BACK = {"snapshot.delete": {"snapshots": 1}}
#: Every transition of a restore, which changes a user's bytes, and of the clone of a volume, with steps of its own;
#: for the others the two around their own effect.
CASES = [
    *(("snapshot.restore", transition) for transition in TRANSITIONS),
    *(("volume.clone", transition) for transition in (*TRANSITIONS, *CLONING_TRANSITIONS)),
    *(
        (kind, transition)
        for kind in ("snapshot.take", "snapshot.delete", "snapshot.clone")
        for transition in ("after publishing", "before the commit")
    ),
]


@dataclass(frozen=True)
class Scenario:
    """A volume with new bytes, and a snapshot with the old ones."""

    services: Services
    cluster: Cluster
    volume_id: UUID
    snapshot_id: UUID

    async def request(self, kind: str) -> Job:
        snapshots = self.services.snapshots
        if kind == "snapshot.take":
            return await snapshots.request_take(self.volume_id, "another", origin=LIMITED)
        if kind == "snapshot.restore":
            return await snapshots.request_restore(self.snapshot_id, origin=LIMITED)
        if kind == "snapshot.delete":
            return await snapshots.request_delete(self.snapshot_id, origin=LIMITED)
        if kind == "volume.clone":
            new = NewVolume("clone", 2 * SIZE)
            return await snapshots.request_clone_of_volume(self.volume_id, new, origin=LIMITED)
        return await snapshots.request_clone(self.snapshot_id, NewVolume("clone", 2 * SIZE), origin=LIMITED)

    def data(self, volume_id: UUID | None = None) -> Path:
        return self.cluster.volumes / str(volume_id or self.volume_id) / "data"

    def snapshot_data(self, snapshot_id: UUID | None = None) -> Path:
        return self.data().parent / "snapshots" / str(snapshot_id or self.snapshot_id)

    def files(self) -> set[Path]:
        volumes = (folder for folder in self.cluster.volumes.iterdir() if not folder.name.startswith("."))
        return {path for folder in volumes for path in folder.rglob("*") if path.is_file()}


async def prepare(services: Services, cluster: Cluster) -> Scenario:
    async with running_worker(cluster.settings):
        created = await ended(services, (await services.volumes.request_create(NewVolume("target", SIZE))).id)
        assert created.volume_id is not None
        data = cluster.volumes / str(created.volume_id) / "data"
        data.write_bytes(OLD)
        taken = await ended(services, (await services.snapshots.request_take(created.volume_id, "kept")).id)
        assert taken.snapshot_id is not None
        data.write_bytes(NEW)
    return Scenario(services, cluster, created.volume_id, taken.snapshot_id)


async def assert_effect_once(scenario: Scenario, job: Job) -> None:
    assert job.status == "succeeded", job.error
    journal.assert_orderly(scenario.cluster.journal, job)
    volume = await scenario.services.volumes.get(scenario.volume_id, project_id=DEFAULT_PROJECT)
    assert (volume.state, volume.size) == ("available", SIZE)
    # Version 4: created (1), recorded (2), acquired (3) and released (4) for the first snapshot. Each further acquire
    # or release raises it by 1.
    assert volume.version == 4 + 2 * (job.kind in HOLD_THE_VOLUME), "not recorded exactly once"
    if job.kind == "snapshot.delete":
        with pytest.raises(SnapshotNotFound):
            await scenario.services.snapshots.get(scenario.snapshot_id, project_id=DEFAULT_PROJECT)
    else:
        snapshot = await scenario.services.snapshots.get(scenario.snapshot_id, project_id=DEFAULT_PROJECT)
        assert snapshot.state == "ready"
        assert snapshot.version == 2 + 2 * (job.kind not in ("snapshot.take", "volume.clone")), (
            "not recorded exactly once"
        )
    await assert_published_once(scenario, job)


async def assert_published_once(scenario: Scenario, job: Job) -> None:
    expected = {scenario.data(): NEW, scenario.snapshot_data(): OLD}
    if job.kind == "snapshot.take":
        snapshot = await scenario.services.snapshots.get(
            job.snapshot_id or scenario.snapshot_id, project_id=DEFAULT_PROJECT
        )
        assert (snapshot.state, snapshot.size, snapshot.version) == ("ready", SIZE, 2)
        expected[scenario.snapshot_data(snapshot.id)] = NEW
    elif job.kind == "snapshot.restore":
        expected[scenario.data()] = OLD
    elif job.kind == "snapshot.delete":
        del expected[scenario.snapshot_data()]
    else:
        clone = await scenario.services.volumes.get(job.volume_id or scenario.volume_id, project_id=DEFAULT_PROJECT)
        assert (clone.state, clone.size, clone.version) == ("available", 2 * SIZE, 2)
        expected[scenario.data(clone.id)] = (NEW if job.kind == "volume.clone" else OLD) + bytes(SIZE)
    assert scenario.files() == set(expected), "files are left over"
    assert {path: path.read_bytes() for path in expected} == expected


@pytest.mark.parametrize(("kind", "transition"), CASES)
async def test_snapshot_job_of_a_worker_killed_at_any_transition_takes_effect_once(
    cluster: Cluster, kind: str, transition: str
) -> None:
    async with open_services(cluster.settings, adopt=True) as services, services.watcher.watching():
        scenario = await prepare(services, cluster)
        await allow_only(services, **NEEDS[kind])
        victim = cluster.start_worker(
            "tests.acceptance.sabotage", SABOTAGE_TRANSITION=transition, SABOTAGE_FAULT="kill"
        )
        job = await scenario.request(kind)
        assert await exit_code(victim) == -signal.SIGKILL

        async with running_worker(cluster.settings):
            await assert_effect_once(scenario, await ended(services, job.id))
            await assert_limits_add_up(services, cluster.volumes, **GIVES_BACK.get(kind, {}))
