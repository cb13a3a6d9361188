"""A node's agent killed before and after each step: nothing is left frozen, mounted twice, or attached to nobody."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import PageRequest
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.attachments.model import Attachment, AttachmentState
from domain.volumes.attachments.repository import AttachmentFilter
from domain.volumes.attachments.service import NewAttachment
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.acceptance.cluster import Cluster
from tests.acceptance.sabotage_node import ATTACH, DETACH, FREEZE, GROW
from tests.acceptance.waiting import TIMEOUT_SECONDS, ended, exit_code
from tests.integration.host_builders import MIB, cleaned_up, devices_of, mounted_at, require_loop_devices, require_tools
from tests.integration.job_builders import sql, volume_row
from tests.support.forked import Process
from tests.support.worker import running_worker
from worker.node.host import filesystems

NODE = "web-1"
SIZE, GROWN = 320 * MIB, 384 * MIB


@pytest.fixture
def place(cluster: Cluster) -> Iterator[Path]:
    """The directory of the volumes and mounts, of which nothing stays attached after the test."""
    require_loop_devices()
    require_tools("mkfs.xfs", "xfs_growfs")
    yield cluster.folder
    cleaned_up(cluster.folder)


class OneNode:
    """A node, and a volume with a file system for it."""

    def __init__(self, cluster: Cluster, services: Services, volume_id: UUID) -> None:
        self.cluster = cluster
        self.services = services
        self.volume_id = volume_id
        self.file = cluster.volumes / str(volume_id) / "data"
        self.mount_path = cluster.folder / "mounts" / str(volume_id)
        self.own_path = cluster.folder / "own"

    async def start(self, transition: str | None = None) -> Process:
        """Start the agent, which kills itself at a transition if one is given; return it once it is known."""
        command = "worker.node" if transition is None else "tests.acceptance.sabotage_node"
        agent = self.cluster.start_worker(
            command,
            url=f"file:{self.cluster.volumes}",
            log=None,
            CISTERN_NODE=NODE,
            CISTERN_NODE_DIR=str(self.cluster.folder / "mounts"),
            SABOTAGE_TRANSITION=transition or "",
        )
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not await self._is_known(agent.pid):
                assert agent.poll() in (None, -signal.SIGKILL)
                await asyncio.sleep(0.02)
        return agent

    async def _is_known(self, pid: int) -> bool:
        rows = await sql(self.services, f"SELECT 1 FROM workers WHERE node = '{NODE}' AND pid = {pid}")
        return bool(rows)

    async def request_attach(self) -> Job:
        new = NewAttachment(NODE, "one", path=str(self.own_path))
        return await self.services.attachments.request_attach(self.volume_id, new)

    async def request_detach(self) -> Job:
        [found] = await self.attachments()
        return await self.services.attachments.request_detach(self.volume_id, found.id)

    async def attach(self) -> None:
        job = await ended(self.services, (await self.request_attach()).id)
        assert job.status == "succeeded", job.error

    async def attachments(self) -> list[Attachment]:
        request = PageRequest(scope="test", limit=10, cursor=None)
        filters = AttachmentFilter(volume_id=self.volume_id)
        page, _ = await self.services.attachments.list_attachments(filters, request, project_id=DEFAULT_PROJECT)
        return list(page.items)

    async def assert_attached(self) -> None:
        [attachment] = await self.attachments()
        assert attachment.state is AttachmentState.ATTACHED
        assert len(devices_of(self.file)) == 1
        assert (len(mounted_at(self.mount_path)), len(mounted_at(self.own_path))) == (1, 1)
        (self.own_path / "written").write_text("data")
        assert (self.mount_path / "written").read_text() == "data"
        assert (await volume_row(self.services, self.volume_id))["state"] == "available"

    async def assert_detached(self) -> None:
        assert await self.attachments() == []
        assert await sql(self.services, "SELECT 1 FROM mounts") == []
        assert devices_of(self.file) == []
        assert mounted_at(self.mount_path) == mounted_at(self.own_path) == []
        assert (await volume_row(self.services, self.volume_id))["state"] == "available"


@asynccontextmanager
async def one_node(cluster: Cluster) -> AsyncIterator[OneNode]:
    """A volume with XFS, and a worker that rescues the jobs of killed agents."""
    async with (
        open_services(cluster.settings, adopt=True) as services,
        services.watcher.watching(),
        running_worker(cluster.settings),
    ):
        created = await ended(services, (await services.volumes.request_create(NewVolume("target", SIZE))).id)
        assert created.volume_id is not None
        node = OneNode(cluster, services, created.volume_id)
        make = await asyncio.create_subprocess_exec("mkfs.xfs", "-q", str(node.file))
        assert await make.wait() == 0
        await sql(services, f"UPDATE volumes SET filesystem = 'xfs', filesystem_grown_to = {SIZE}")
        yield node


@pytest.mark.parametrize("transition", ATTACH)
async def test_an_agent_killed_at_any_step_of_attaching_leaves_the_volume_attached_once(
    cluster: Cluster, place: Path, transition: str
) -> None:
    async with one_node(cluster) as node:
        victim = await node.start(transition)
        job = await node.request_attach()
        assert await exit_code(victim) == -signal.SIGKILL
        await node.start()

        assert (await ended(node.services, job.id)).status == "succeeded"
        await node.assert_attached()


@pytest.mark.parametrize("transition", DETACH)
async def test_an_agent_killed_at_any_step_of_detaching_leaves_nothing_attached(
    cluster: Cluster, place: Path, transition: str
) -> None:
    async with one_node(cluster) as node:
        first = await node.start()
        await node.attach()
        first.send_signal(signal.SIGTERM)
        assert await exit_code(first) == 0
        victim = await node.start(transition)
        job = await node.request_detach()
        assert await exit_code(victim) == -signal.SIGKILL
        await node.start()

        assert (await ended(node.services, job.id)).status == "succeeded"
        await node.assert_detached()


@pytest.mark.parametrize("transition", GROW)
async def test_an_agent_killed_at_any_step_of_a_growth_leaves_it_to_the_next_one(
    cluster: Cluster, place: Path, transition: str
) -> None:
    async with one_node(cluster) as node:
        first = await node.start()
        await node.attach()
        first.send_signal(signal.SIGTERM)
        assert await exit_code(first) == 0
        victim = await node.start(transition)
        await ended(node.services, (await node.services.volumes.request_expand(node.volume_id, Growth(to=GROWN))).id)
        assert await exit_code(victim) == -signal.SIGKILL
        await node.start()

        async with asyncio.timeout(TIMEOUT_SECONDS):
            while (await volume_row(node.services, node.volume_id))["filesystem_grown_to"] != GROWN:
                await asyncio.sleep(0.05)
        [device] = devices_of(node.file)
        assert filesystems.mounted_size(node.mount_path, Path(device), "xfs") == GROWN
        await node.assert_attached()


@pytest.mark.parametrize("transition", FREEZE)
async def test_an_agent_killed_at_any_step_of_a_freeze_leaves_nothing_frozen(
    cluster: Cluster, place: Path, transition: str
) -> None:
    async with one_node(cluster) as node:
        first = await node.start()
        await node.attach()
        first.send_signal(signal.SIGTERM)
        assert await exit_code(first) == 0
        victim = await node.start(transition)
        async with node.services.freezer.frozen(node.volume_id) as freeze:
            pass
        assert await exit_code(victim) == -signal.SIGKILL

        writing = asyncio.to_thread((node.own_path / "thawed").write_text, "data")
        await asyncio.wait_for(writing, TIMEOUT_SECONDS)
        assert not freeze.was_held
        await node.start()
        async with node.services.freezer.frozen(node.volume_id) as again:
            pass
        assert again.was_held
        await node.assert_attached()
