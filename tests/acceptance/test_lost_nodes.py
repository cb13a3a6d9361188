"""A node that is stopped past its lease while another attaches its volume: what it writes never gets there."""

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from domain.db.base import DEFAULT_PROJECT
from domain.services import Services
from domain.volumes.attachments.service import NewAttachment
from tests.acceptance import journal
from tests.acceptance.cluster import Cluster
from tests.acceptance.node_builders import NODE, OneNode, one_node
from tests.acceptance.node_builders import place as place  # noqa: PLC0414 (a fixture)
from tests.acceptance.waiting import TIMEOUT_SECONDS, ended
from tests.integration.host_builders import MIB, cleaned_up, devices_of, mounted_at

OTHER = "web-2"
FEW = 20


async def is_alive(services: Services, name: str) -> bool:
    nodes = await services.attachments.nodes(project_id=DEFAULT_PROJECT)
    return next((node.is_alive for node in nodes if node.name == name), False)


@pytest.fixture
def sharing(place: Path, cluster: Cluster) -> Iterator[None]:
    """Volumes on XFS, which shares blocks: an isolated volume then has the bytes of one moment."""
    image = place / "storage.image"
    image.touch()
    os.truncate(image, 2 * 1024 * MIB)
    cluster.volumes.mkdir()
    subprocess.run(["mkfs.xfs", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(cluster.volumes)], check=True)
    yield
    cluster.clear()
    cleaned_up(place)


def writes_until_it_fails(directory: Path, stop: threading.Event) -> int:
    """Append numbered records, each synced, until writing fails or the test says so; return how many were."""
    written = 0
    try:
        with (directory / "records").open("a") as records:
            while not stop.is_set():
                records.write(f"{written}\n")
                records.flush()
                os.fsync(records.fileno())
                written += 1
    except OSError:
        pass
    return written


@asynccontextmanager
async def writing(directory: Path) -> AsyncIterator[asyncio.Task[int]]:
    """Write records in the background while the block runs, or until that fails."""
    stop = threading.Event()
    task = asyncio.create_task(asyncio.to_thread(writes_until_it_fails, directory, stop))
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not (directory / "records").exists() or len(records_in(directory)) < FEW:
                await asyncio.sleep(0.02)
        yield task
    finally:
        stop.set()
        await task


def records_in(directory: Path) -> list[str]:
    return (directory / "records").read_text().splitlines()


async def force_detach(node: OneNode) -> None:
    [found] = await node.attachments()
    job = await node.services.attachments.request_detach(node.volume_id, found.id, force=True)
    assert (await ended(node.services, job.id)).status == "succeeded"


async def attach_elsewhere(node: OneNode) -> Path:
    job = await node.services.attachments.request_attach(node.volume_id, NewAttachment(OTHER, "two"))
    done = await ended(node.services, job.id)
    assert done.status == "succeeded", done.error
    assert done.result is not None
    return Path(done.result["path"])


@pytest.mark.slow
async def test_nothing_that_a_lost_node_writes_reaches_a_volume_that_another_one_has(
    cluster: Cluster, sharing: None
) -> None:
    async with one_node(cluster) as node:
        lost = await node.start()
        await node.attach()
        old_device = devices_of(node.file)
        async with writing(node.own_path) as writer:
            lost.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while await is_alive(node.services, NODE):
                    await asyncio.sleep(0.05)

            before = len(records_in(node.own_path))
            await force_detach(node)
            await node.start(node=OTHER)
            mounted = await attach_elsewhere(node)
            seen = records_in(mounted)
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while len(records_in(node.own_path)) < len(seen) + FEW:  # the lost node's container writes on
                    await asyncio.sleep(0.02)

            assert len(seen) >= before
            assert seen == [str(number) for number in range(len(seen))], "a prefix, complete up to the isolation"
            assert records_in(mounted) == seen
            assert old_device != devices_of(node.file) != []
            published = [entry.operation for entry in journal.read(cluster.journal) if entry.event == "published"]
            assert published[-1] == "isolate"

            lost.send_signal(signal.SIGCONT)
            assert await asyncio.wait_for(asyncio.shield(writer), TIMEOUT_SECONDS) >= len(seen), (
                "its writer fails at last"
            )
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while mounted_at(node.own_path) or mounted_at(node.mount_path):
                    await asyncio.sleep(0.05)
            assert records_in(mounted) == seen
            [attachment] = await node.attachments()
            assert attachment.node == OTHER
