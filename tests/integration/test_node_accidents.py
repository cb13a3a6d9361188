"""A node whose host, whose jobs or whose database are not as it left them; the host is in memory."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from domain.attachment_handlers import attachment_handlers
from domain.db.base import DEFAULT_PROJECT
from domain.errors import ConfigurationError
from domain.jobs.attempt import ClaimedJob
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.context import Grant, StopReason
from domain.volumes.attachments.freezing import FreezeAnswers
from domain.volumes.attachments.model import Attachment, AttachmentState, Mode, Mount
from domain.volumes.attachments.node_volumes import NodeVolumes
from domain.volumes.attachments.service import NewAttachment
from domain.volumes.model import Volume
from tests.integration.job_builders import MIB, sql, volume_row
from tests.integration.snapshot_builders import a_stored_volume
from tests.unit.fake_host import FakeHost
from worker.node.agent import NodeAgent
from worker.node.freezing import NodeFreezes
from worker.node.host.errors import GrowthRefused, TargetRefused
from worker.node.host.filesystems import FilesystemUsage
from worker.node.host.volumes import Attached, always
from worker.node.keeper import REPORT_SECONDS, VolumeKeeper
from worker.node.main import open_node
from worker.performer import AttemptPerformer

NODE = "web-1"
TRIM_SECONDS = 1e6


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Node:
    """A keeper that looks when a test says so."""

    def __init__(self, services: Services, host: FakeHost) -> None:
        self.services = services
        self.host = host
        self.clock = Clock()
        self.agent = NodeAgent(host, services.backends)
        self.keeper = VolumeKeeper(
            host,
            self.agent,
            NodeVolumes(services.database, NODE),
            asyncio.sleep,
            freezes=NodeFreezes(host, FreezeAnswers(services.database), NODE),
            trim_seconds=TRIM_SECONDS,
            clock=self.clock,
        )

    async def look(self) -> None:
        await self.keeper.look()
        await self.keeper.idle()

    def called(self, method: str) -> int:
        return sum(name == method for name, _ in self.host.calls)


@pytest.fixture
async def services(settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    backends = {"disk": f"file:{tmp_path}/volumes"}
    async with open_services(settings.model_copy(update={"backends": backends}), adopt=True) as services:
        yield services


@pytest.fixture
def node(services: Services, tmp_path: Path) -> Node:
    return Node(services, FakeHost(tmp_path / "mounts"))


async def an_attached_volume(node: Node, *paths: str | None, filesystem: str | None = "xfs") -> Volume:
    """Create a volume that holders have at these paths, all of them read-write."""
    services = node.services
    volume = await a_stored_volume(services, size=MIB, backend="disk")
    await sql(
        services,
        "UPDATE volumes SET filesystem = :filesystem, filesystem_grown_to = size WHERE id = :id",
        filesystem=filesystem,
        id=volume.id,
    )
    attached = await node.host.attach(Path(str(services.volumes.path(volume))), volume.id, filesystem)
    async with services.database.transaction() as session:
        session.add(
            Mount(volume_id=volume.id, node=NODE, generation=1, device=attached.device, path=attached.mount_path)
        )
        for number, path in enumerate(paths):
            session.add(_attachment(volume, f"holder-{number}", path))
    for path in paths:
        if path is not None:
            await node.host.bind(volume.id, Path(path), read_only=False)
    node.host.calls.clear()
    return volume


def _attachment(volume: Volume, holder: str, path: str | None) -> Attachment:
    return Attachment(
        id=uuid7(),
        project_id=DEFAULT_PROJECT,
        volume_id=volume.id,
        node=NODE,
        holder=holder,
        mode=Mode.READ_WRITE,
        path=path,
        state=AttachmentState.ATTACHED,
        generation=1,
    )


async def test_each_report_of_a_node_says_how_full_its_volume_is(node: Node) -> None:
    volume = await an_attached_volume(node, None)
    await node.look()
    await sql(node.services, "UPDATE volumes SET used_at = now() - interval '1 hour'")
    node.host.usages[volume.id] = FilesystemUsage(MIB, MIB // 2, MIB // 4, None, None)

    node.clock.now += REPORT_SECONDS
    await node.look()

    [found] = await sql(
        node.services, "SELECT used, used_at > now() - interval '1 minute' FROM volumes WHERE id = :id", id=volume.id
    )
    assert tuple(found) == (MIB - MIB // 4, True)


async def test_the_reason_why_a_file_system_has_not_grown_stays_until_it_has(node: Node) -> None:
    volume = await an_attached_volume(node, None)
    await sql(node.services, "UPDATE volumes SET size = size * 2")
    node.host.fail("grow", GrowthRefused("resize2fs: not while it is mounted"))
    await node.look()
    node.clock.now += REPORT_SECONDS / 2
    await node.look()
    assert (await volume_row(node.services, volume.id))["filesystem_error"] == "resize2fs: not while it is mounted"

    node.host.sizes[Path(str(node.services.volumes.path(volume)))] = 2 * MIB
    node.clock.now += REPORT_SECONDS
    await node.look()
    row = await volume_row(node.services, volume.id)
    assert (row["filesystem_error"], row["filesystem_grown_to"]) == (None, 2 * MIB)


async def test_a_holder_whose_mount_is_missing_has_it_again(node: Node) -> None:
    """As after a detachment that was cancelled: the holder would write to the disk of the host."""
    volume = await an_attached_volume(node, "/srv/one", "/srv/two")
    await node.host.unbind(volume.id, Path("/srv/two"))
    await node.look()
    assert node.host.volumes[volume.id].targets == ("/srv/one", "/srv/two")

    node.host.calls.clear()
    await node.look()
    assert node.called("attach") == 0


async def test_a_volume_whose_device_is_left_is_mounted_again(node: Node) -> None:
    volume = await an_attached_volume(node, None)
    node.host.volumes[volume.id] = replace(node.host.volumes[volume.id], mount_path=None)
    await node.look()
    assert node.called("attach") == 1


async def test_a_holder_that_cannot_have_its_mount_does_not_keep_it_from_the_others(node: Node) -> None:
    volume = await an_attached_volume(node, "/srv/one", "/srv/two")
    for path in ("/srv/one", "/srv/two"):
        await node.host.unbind(volume.id, Path(path))
    node.host.fail("bind", TargetRefused("/srv/one is not empty."))
    await node.look()
    assert len(node.host.volumes[volume.id].targets) == 1


async def test_a_volume_that_left_the_node_while_the_keeper_looked_is_not_mounted(node: Node) -> None:
    volume = await an_attached_volume(node, None)
    node.host.volumes.clear()
    async with node.agent.changing(volume.id):  # as a job that detaches it
        await node.keeper.look()
        await sql(node.services, "DELETE FROM attachments")
    await node.keeper.idle()
    assert node.called("attach") == 0


async def test_a_volume_that_leaves_the_node_while_it_is_mounted_is_let_go_of(node: Node) -> None:
    volume = await an_attached_volume(node, None)
    node.host.volumes.clear()
    attach = node.host.attach

    async def attach_slowly(
        file: Path, volume_id: UUID, filesystem: str | None, check: Callable[[], None] = always
    ) -> Attached:
        await sql(node.services, "DELETE FROM attachments")
        return await attach(file, volume_id, filesystem, check)

    node.host.attach = attach_slowly  # type: ignore[method-assign]
    await node.look()
    assert (node.called("release_lost"), volume.id in node.host.volumes) == (1, False)


async def test_a_volume_that_is_attached_again_while_the_keeper_looks_is_not_let_go_of(node: Node) -> None:
    volume = await an_attached_volume(node)
    async with node.agent.changing(volume.id):  # as a job that attaches it
        await node.keeper.look()
        async with node.services.database.transaction() as session:
            session.add(_attachment(volume, "new", None))
    await node.keeper.idle()
    assert node.called("release_lost") == 0


async def test_a_trim_that_takes_long_holds_up_no_growth(node: Node) -> None:
    volume = await an_attached_volume(node, None)
    trimming = asyncio.Event()

    async def trim(volume_id: UUID) -> None:
        await trimming.wait()

    node.host.trim = trim  # type: ignore[method-assign]
    await node.look()
    node.clock.now += TRIM_SECONDS
    await node.keeper.look()
    await sql(node.services, "UPDATE volumes SET size = size * 2")
    node.host.sizes[Path(str(node.services.volumes.path(volume)))] = 2 * MIB
    while not node.called("grow"):
        await node.keeper.look()
    trimming.set()
    await node.keeper.idle()
    assert (await volume_row(node.services, volume.id))["filesystem_grown_to"] == 2 * MIB


async def test_an_agent_of_another_host_with_the_name_of_the_node_keeps_it_from_starting(
    services: Services, node: Node
) -> None:
    await sql(services, "INSERT INTO workers (id, host, pid, node) VALUES (gen_random_uuid(), 'web-2', 1, :n)", n=NODE)
    settings = services.settings.model_copy(update={"node": NODE, "lease_seconds": 1.0})
    await sql(services, "UPDATE workers SET heartbeat_at = now() + interval '1 hour'")
    with pytest.raises(ConfigurationError, match="the agent of the host 'web-2' has the name 'web-1', too"):
        async with open_node(settings, node.host):
            pass
    assert node.host.calls == []

    await sql(services, "UPDATE workers SET heartbeat_at = now() - interval '0.9 seconds'")  # it was killed
    async with open_node(settings, node.host):
        assert node.called("thaw_all") == 1


async def test_a_holder_whose_attachment_is_cancelled_keeps_no_mount(services: Services, node: Node) -> None:
    """The attempt that was killed had mounted it; the one that gives up is stopped before it begins."""
    volume = await an_attached_volume(node, "/srv/one")
    await sql(services, "INSERT INTO workers (id, host, pid, node) VALUES (gen_random_uuid(), 'h', 1, :n)", n=NODE)
    job = await services.attachments.request_attach(volume.id, NewAttachment(NODE, "two", path="/srv/two"))
    await node.host.bind(volume.id, Path("/srv/two"), read_only=False)
    claimed = ClaimedJob.from_row(job)
    grant = Grant(job.id, claimed.fence, math.inf)
    grant.stop(StopReason.CANCELLED)
    made = attachment_handlers(services.database, services.backends, max_attempts=1, node=node.agent)

    await AttemptPerformer(made, services.retry_policy).perform(claimed, grant)
    assert node.host.volumes[volume.id].targets == ("/srv/one",)


async def test_nobody_waits_for_a_node_that_is_dead_to_freeze_a_volume(services: Services, node: Node) -> None:
    volume = await an_attached_volume(node, None)
    await sql(
        services,
        "INSERT INTO workers (id, host, pid, node, heartbeat_at)"
        " VALUES (gen_random_uuid(), 'h', 1, :n, now() - interval '1 minute')",
        n=NODE,
    )
    async with asyncio.timeout(2), services.freezer.frozen(volume.id) as freeze:
        assert not freeze.is_frozen
    assert await sql(services, "SELECT freeze_id FROM mounts") == [(None,)], (
        "it would stand still when the node is back"
    )
