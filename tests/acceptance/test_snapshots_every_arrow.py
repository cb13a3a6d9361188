"""A blow at each arrow of a job on a snapshot: another worker finishes, and the effect is there once."""

import signal
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from domain.errors import SnapshotNotFound
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.service import NewVolume
from tests.acceptance import journal
from tests.acceptance.cluster import Cluster
from tests.acceptance.sabotage import ARROWS
from tests.acceptance.waiting import ended, exit_code
from tests.support.worker import running_worker

SIZE = 1 << 20
OLD, NEW = b"old!" * (SIZE // 4), b"new?" * (SIZE // 4)
#: Every arrow for the one that changes a user's bytes; for the others those around what is theirs.
BLOWS = [
    *(("snapshot.restore", arrow) for arrow in ARROWS),
    *(
        (kind, arrow)
        for kind in ("snapshot.take", "snapshot.delete", "snapshot.clone")
        for arrow in ("after publishing", "before the commit")
    ),
]


@dataclass(frozen=True)
class Scene:
    """A volume with new bytes, and a snapshot with the old ones."""

    services: Services
    cluster: Cluster
    volume_id: UUID
    snapshot_id: UUID

    async def request(self, kind: str) -> Job:
        snapshots = self.services.snapshots
        if kind == "snapshot.take":
            return await snapshots.request_take(self.volume_id, "another")
        if kind == "snapshot.restore":
            return await snapshots.request_restore(self.snapshot_id)
        if kind == "snapshot.delete":
            return await snapshots.request_delete(self.snapshot_id)
        return await snapshots.request_clone(self.snapshot_id, NewVolume("clone", 2 * SIZE))

    def data(self, volume_id: UUID | None = None) -> Path:
        return self.cluster.volumes / str(volume_id or self.volume_id) / "data"

    def kept(self, snapshot_id: UUID | None = None) -> Path:
        return self.data().parent / "snapshots" / str(snapshot_id or self.snapshot_id)

    def files(self) -> set[Path]:
        volumes = (folder for folder in self.cluster.volumes.iterdir() if not folder.name.startswith("."))
        return {path for folder in volumes for path in folder.rglob("*") if path.is_file()}


async def prepare(services: Services, cluster: Cluster) -> Scene:
    async with running_worker(cluster.settings):
        created = await ended(services, (await services.volumes.request_create(NewVolume("struck", SIZE))).id)
        assert created.volume_id is not None
        data = cluster.volumes / str(created.volume_id) / "data"
        data.write_bytes(OLD)
        taken = await ended(services, (await services.snapshots.request_take(created.volume_id, "kept")).id)
        assert taken.snapshot_id is not None
        data.write_bytes(NEW)
    return Scene(services, cluster, created.volume_id, taken.snapshot_id)


async def assert_effect_once(scene: Scene, job: Job) -> None:
    assert job.status == "succeeded", job.error
    journal.assert_orderly(scene.cluster.journal, job)
    volume = await scene.services.volumes.get(scene.volume_id)
    assert (volume.state, volume.size) == ("available", SIZE)
    # Made with version 1, recorded, taken and let go for the first snapshot: 4. Whatever else was recorded raises it.
    assert volume.version == 4 + 2 * (job.kind in ("snapshot.take", "snapshot.restore")), "recorded once"
    if job.kind == "snapshot.delete":
        with pytest.raises(SnapshotNotFound):
            await scene.services.snapshots.get(scene.snapshot_id)
    else:
        snapshot = await scene.services.snapshots.get(scene.snapshot_id)
        assert snapshot.state == "ready"
        assert snapshot.version == 2 + 2 * (job.kind != "snapshot.take"), "recorded once"
    await assert_published_once(scene, job)


async def assert_published_once(scene: Scene, job: Job) -> None:
    expected = {scene.data(): NEW, scene.kept(): OLD}
    if job.kind == "snapshot.take":
        snapshot = await scene.services.snapshots.get(job.snapshot_id or scene.snapshot_id)
        assert (snapshot.state, snapshot.size, snapshot.version) == ("ready", SIZE, 2)
        expected[scene.kept(snapshot.id)] = NEW
    elif job.kind == "snapshot.restore":
        expected[scene.data()] = OLD
    elif job.kind == "snapshot.delete":
        del expected[scene.kept()]
    else:
        clone = await scene.services.volumes.get(job.volume_id or scene.volume_id)
        assert (clone.state, clone.size, clone.version) == ("available", 2 * SIZE, 2)
        expected[scene.data(clone.id)] = OLD + bytes(SIZE)
    assert scene.files() == set(expected), "and nothing is left over"
    assert {path: path.read_bytes() for path in expected} == expected


@pytest.mark.parametrize(("kind", "arrow"), BLOWS)
async def test_a_worker_killed_at_any_arrow_is_replaced_and_the_effect_is_there_once(
    cluster: Cluster, kind: str, arrow: str
) -> None:
    async with open_services(cluster.settings) as services, services.watcher.watching():
        scene = await prepare(services, cluster)
        victim = cluster.start_worker("tests.acceptance.sabotage", SABOTAGE_ARROW=arrow, SABOTAGE_BLOW="kill")
        job = await scene.request(kind)
        assert await exit_code(victim) == -signal.SIGKILL

        async with running_worker(cluster.settings):
            await assert_effect_once(scene, await ended(services, job.id))
