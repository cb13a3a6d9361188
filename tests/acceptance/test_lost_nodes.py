"""A node that is stopped past its lease while another attaches its volume: what it writes never gets there."""

import asyncio
import os
import signal
import threading
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
from tests.integration.host_builders import devices_of, mounted_at

OTHER = "web-2"


async def is_alive(services: Services, name: str) -> bool:
    nodes = await services.attachments.nodes(project_id=DEFAULT_PROJECT)
    return next((node.is_alive for node in nodes if node.name == name), False)


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
    cluster: Cluster, place: Path
) -> None:
    async with one_node(cluster) as node:
        lost = await node.start()
        await node.attach()
        old_device = devices_of(node.file)
        stop = threading.Event()
        writing = asyncio.create_task(asyncio.to_thread(writes_until_it_fails, node.own_path, stop))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not (node.own_path / "records").exists() or len(records_in(node.own_path)) < 20:
                await asyncio.sleep(0.02)
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
            while len(records_in(node.own_path)) < len(seen) + 20:  # the lost node's container writes on
                await asyncio.sleep(0.02)

        assert len(seen) >= before
        assert seen == [str(number) for number in range(len(seen))], "a prefix, complete up to the isolation"
        assert records_in(mounted) == seen
        assert old_device != devices_of(node.file) != []
        published = [entry.operation for entry in journal.read(cluster.journal) if entry.event == "published"]
        assert published[-1] == "isolate"

        lost.send_signal(signal.SIGCONT)
        assert await asyncio.wait_for(writing, TIMEOUT_SECONDS) >= len(seen), "its writer fails at last"
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while mounted_at(node.own_path) or mounted_at(node.mount_path):
                await asyncio.sleep(0.05)
        assert records_in(mounted) == seen
        [attachment] = await node.attachments()
        assert attachment.node == OTHER
        stop.set()
