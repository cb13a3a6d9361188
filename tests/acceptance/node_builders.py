"""A node's agent in a process of its own, and a volume with a file system for it."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest

from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.volumes.attachments.model import Attachment, AttachmentState
from domain.volumes.attachments.service import NewAttachment
from domain.volumes.service import NewVolume
from tests.acceptance.cluster import Cluster
from tests.acceptance.waiting import TIMEOUT_SECONDS, ended, exit_code
from tests.integration.host_builders import MIB, cleaned_up, devices_of, mounted_at, require_loop_devices, require_tools
from tests.integration.job_builders import sql, volume_row
from tests.support.forked import Process
from tests.support.node import attachments_of
from tests.support.worker import running_worker

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

    async def start(self, transition: str | None = None, *, node: str = NODE) -> Process:
        """Start an agent, which kills itself at a transition if one is given; return it once it is known."""
        command = "worker.node" if transition is None else "tests.acceptance.sabotage_node"
        agent = self.cluster.start_worker(
            command,
            url=f"file:{self.cluster.volumes}",
            log=None,
            CISTERN_NODE=node,
            CISTERN_NODE_DIR=str(self.cluster.folder / ("mounts" if node == NODE else node)),
            SABOTAGE_TRANSITION=transition or "",
        )
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not await self._is_known(agent.pid):
                assert agent.poll() in (None, -signal.SIGKILL)
                await asyncio.sleep(0.02)
        return agent

    async def start_with_the_volume(self, transition: str) -> Process:
        """Let one agent attach the volume and stop, and start another one, which kills itself at the transition."""
        first = await self.start()
        await self.attach()
        first.send_signal(signal.SIGTERM)
        assert await exit_code(first) == 0
        return await self.start(transition)

    async def _is_known(self, pid: int) -> bool:
        rows = await sql(self.services, f"SELECT 1 FROM workers WHERE pid = {pid}")
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
        return await attachments_of(self.services, self.volume_id)

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
        new = NewVolume("target", SIZE, columns={"filesystem": "xfs"})
        created = await ended(services, (await services.volumes.request_create(new)).id)
        assert created.status == "succeeded", created.error
        assert created.volume_id is not None
        yield OneNode(cluster, services, created.volume_id)
