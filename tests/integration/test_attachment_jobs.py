"""Jobs about attachments up to their rows: what failed, repeated and forced ones leave, without any host."""

import pytest
from uuid_utils.compat import uuid7

from domain.audit.repository import AuditFilter
from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import PageRequest
from domain.errors import VolumeAttached
from domain.jobs.attempt import ClaimedJob, Failed, Succeeded
from domain.jobs.engine import JobEngine
from domain.jobs.model import Job, Worker
from domain.services import Services
from domain.settings import Settings
from domain.volumes.attachments import freezing
from domain.volumes.attachments.model import FilesystemReport, queue_of
from domain.volumes.attachments.node_volumes import NodeVolumes
from domain.volumes.attachments.service import NewAttachment
from domain.volumes.model import Volume
from tests.integration.job_builders import sql, volume_row
from tests.integration.snapshot_builders import a_snapshot, a_stored_volume, attempted, settled
from tests.unit.fake_host import FakeHost
from worker.node.main import open_node

NODE = "web-1"
FAILED = Failed({"code": "node-unable", "detail": "No tool."}, None)


async def a_node(services: Services, node: str = NODE) -> None:
    await sql(services, f"INSERT INTO workers (id, host, pid, node) VALUES (gen_random_uuid(), 'h', 1, '{node}')")


async def claimed(services: Services, job: Job) -> tuple[JobEngine, ClaimedJob]:
    """Claim a job as the agent of its node, or as a worker."""
    engine = services.engine(
        Worker(id=uuid7(), host="test", pid=1), services.handlers, served=lambda: [queue_of(NODE), "memory"]
    )
    claim = await engine.claim(job.message)
    assert claim is not None
    return engine, claim.job


async def attached(services: Services, volume: Volume, holder: str = "one") -> None:
    """Attach a volume for a holder, as if its node had done it."""
    engine, own = await claimed(services, await services.attachments.request_attach(volume.id, new(holder)))
    result = {
        "volume_id": str(volume.id),
        "attachment_id": own.params["attachment_id"],
        "device": "/dev/loop0",
        "mount_path": "/m",
        "path": "/m",
        "filesystem": FilesystemReport().to_json(),
    }
    await settled(engine, own, Succeeded(result))


def new(holder: str = "one", node: str = NODE) -> NewAttachment:
    return NewAttachment(node, holder)


async def holders(services: Services) -> list[tuple[str, str]]:
    found = await sql(services, "SELECT holder, state FROM attachments ORDER BY holder")
    return [(row.holder, row.state) for row in found]


async def mounts(services: Services) -> list[str]:
    return [row.node for row in await sql(services, "SELECT node FROM mounts")]


@pytest.fixture
async def volume(services: Services) -> Volume:
    """A volume, and a node with an agent."""
    await a_node(services)
    return await a_stored_volume(services)


async def test_attached_volume_is_neither_restored_nor_deleted_nor_attached_elsewhere(
    services: Services, volume: Volume
) -> None:
    snapshot = await a_snapshot(services, volume)
    await attached(services, volume)
    await a_node(services, "web-2")
    before = await volume_row(services, volume.id)

    for refused in (
        services.snapshots.request_restore(snapshot.id),
        services.volumes.request_delete(volume.id),
        services.attachments.request_attach(volume.id, new("two", "web-2")),
    ):
        with pytest.raises(VolumeAttached):
            await refused
    assert await volume_row(services, volume.id) == before


async def test_volume_taken_by_force_keeps_its_attachments_until_the_job_is_settled(
    services: Services, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezing, "_START_SECONDS", 0.1)  # no agent runs that could freeze the volume
    await attached(services, volume)
    await attached(services, volume, "two")
    [(attachment_id, *_), _] = await sql(services, "SELECT id FROM attachments ORDER BY id")
    job = await services.attachments.request_detach(volume.id, attachment_id, force=True)
    engine, own = await claimed(services, job)
    outcome = await attempted(services, own)

    assert await holders(services) == [("one", "detaching"), ("two", "detaching")]
    assert await mounts(services) == [NODE]
    await settled(engine, own, outcome)
    assert (await holders(services), await mounts(services)) == ([], [])


async def test_volume_that_could_not_be_taken_by_force_stays_with_its_holders(
    services: Services, volume: Volume
) -> None:
    await attached(services, volume)
    [(attachment_id,)] = await sql(services, "SELECT id FROM attachments")
    job = await services.attachments.request_detach(volume.id, attachment_id, force=True)
    engine, own = await claimed(services, job)
    await settled(engine, own, FAILED)

    assert (await holders(services), await mounts(services)) == ([("one", "attached")], [NODE])


async def test_failed_attachment_of_a_new_holder_leaves_nothing(services: Services, volume: Volume) -> None:
    engine, own = await claimed(services, await services.attachments.request_attach(volume.id, new()))
    assert await holders(services) == [("one", "attaching")]
    await settled(engine, own, FAILED)

    assert (await holders(services), (await volume_row(services, volume.id))["state"]) == ([], "available")


async def test_failed_repetition_of_an_attachment_leaves_the_holder_what_it_has(
    services: Services, volume: Volume
) -> None:
    await attached(services, volume)
    engine, own = await claimed(services, await services.attachments.request_attach(volume.id, new()))
    await settled(engine, own, FAILED)

    assert (await holders(services), await mounts(services)) == ([("one", "attached")], [NODE])


async def test_report_counts_only_from_the_node_that_has_the_volume(services: Services, volume: Volume) -> None:
    await attached(services, volume)
    report = FilesystemReport(size=1000, used=10, available=990)

    await NodeVolumes(services.database, "web-2").report(volume.id, report)
    assert (await volume_row(services, volume.id))["filesystem_size"] is None
    await NodeVolumes(services.database, NODE).report(volume.id, report)
    assert (await volume_row(services, volume.id))["filesystem_size"] == 1000
    await sql(services, "DELETE FROM mounts")
    await NodeVolumes(services.database, NODE).report(volume.id, FilesystemReport(size=2000))
    assert (await volume_row(services, volume.id))["filesystem_size"] == 1000


async def test_agent_of_a_node_is_no_worker(services: Services) -> None:
    await a_node(services)
    assert await services.workers.count_alive() == 0
    assert await services.workers.all() == []


async def test_agent_of_a_node_fetches_only_the_jobs_of_its_node(services: Services, settings: Settings) -> None:
    async with open_node(settings.model_copy(update={"node": NODE}), FakeHost()) as runner:
        assert runner.backends() == [f"node:{NODE}"]
        assert await services.workers.count_alive() == 0
        assert [one.is_alive for one in await services.attachments.nodes(project_id=DEFAULT_PROJECT)] == [True]


async def test_audit_log_names_the_volume_that_is_attached_and_detached(services: Services, volume: Volume) -> None:
    await attached(services, volume)
    [(attachment_id,)] = await sql(services, "SELECT id FROM attachments")
    await services.attachments.request_detach(volume.id, attachment_id, force=True)
    page = await services.audit.list_entries(AuditFilter(), PageRequest("audit", limit=10))

    named = [(one.action, one.subject_id, one.subject_name, one.project_id) for one in page.items]
    assert named == [(kind, volume.id, volume.name, DEFAULT_PROJECT) for kind in ("volume.isolate", "volume.attach")]
