"""The CSI plugin beside the real API, a worker and a node: bytes and sizes in mounted file systems, each call twice."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from fastapi import FastAPI

from api.cli.client import ApiClient
from api.cli.http import HttpClient
from api.csi import csi_pb2 as csi
from api.csi.server import serving
from domain.settings import Settings
from tests.integration.conftest import RunningWorker
from tests.integration.host_builders import MIB, require_tools
from tests.integration.host_builders import place as place  # noqa: PLC0414 (a fixture)
from tests.integration.node_fixtures import NODE
from tests.integration.node_fixtures import host as host  # noqa: PLC0414 (a fixture)
from tests.integration.node_fixtures import node_settings as node_settings  # noqa: PLC0414 (a fixture)
from tests.integration.node_fixtures import services as services  # noqa: PLC0414 (a fixture)
from tests.support import keys, servers
from tests.support.node import running_node
from tests.unit.csi_client import STUBS, from_snapshot, mount, new_volume, size
from worker.node.host.host import Host

SIZE = 320 * MIB


@pytest.fixture
async def plugin(
    app: FastAPI, node_settings: Settings, host: Host, running_worker: RunningWorker, tmp_path: Path
) -> AsyncIterator[tuple[Any, Any]]:
    """The stubs of controller and node, with all that is behind them."""
    endpoint = f"unix://{tmp_path}/csi.sock"
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(servers.serving(app))
        await stack.enter_async_context(running_worker(node_settings))
        await stack.enter_async_context(running_node(node_settings, host))
        port = server.servers[0].sockets[0].getsockname()[1]
        client = ApiClient(HttpClient(f"http://127.0.0.1:{port}", keys.BEARER))
        await stack.enter_async_context(serving(client, endpoint, NODE))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(endpoint))
        _, controller, node = (stub(channel) for stub in STUBS)
        yield controller, node


async def twice(call: Callable[[Any], Any], request: Any) -> Any:
    """Repeat a call as an orchestrator does until it succeeds, and once more; both have the same answer."""
    answers: list[Any] = []
    while len(answers) < 2:
        try:
            answers.append(await call(request))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ABORTED:
                raise
    assert answers[0] == answers[1]
    return answers[0]


async def a_volume(controller: Any, name: str, **members: Any) -> str:
    """Create a volume with XFS and return its id."""
    require_tools("mkfs.xfs")
    request = new_volume(name, capacity_range=size(SIZE), volume_capabilities=[mount("xfs")], **members)
    return str((await twice(controller.CreateVolume, request)).volume.volume_id)


async def stage(node: Any, volume_id: str, path: Path) -> None:
    request = csi.NodeStageVolumeRequest(
        volume_id=volume_id, staging_target_path=str(path), volume_capability=mount("xfs")
    )
    await twice(node.NodeStageVolume, request)


async def unstage(node: Any, volume_id: str, path: Path) -> None:
    request = csi.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=str(path))
    await twice(node.NodeUnstageVolume, request)


def record(path: Path, text: str) -> None:
    """Write a file as an application does that acknowledges it."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def total(path: Path) -> int:
    """Return the bytes of a mounted file system."""
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


async def test_volume_is_mounted_for_a_pod_grows_and_is_deleted(plugin: tuple[Any, Any], place: Path) -> None:
    (controller, node), staging, pod = plugin, place / "staging", place / "pod"
    ids: dict[str, Any] = {"volume_id": await a_volume(controller, "pvc-1")}
    capacity = size(2 * SIZE)
    await stage(node, ids["volume_id"], staging)
    publish = csi.NodePublishVolumeRequest(
        **ids, staging_target_path=str(staging), target_path=str(pod), volume_capability=mount("xfs")
    )
    await twice(node.NodePublishVolume, publish)
    assert (os.path.ismount(staging), os.path.ismount(pod)) == (True, True)
    record(pod / "record", "acknowledged")
    before = total(pod)

    await twice(controller.ControllerExpandVolume, csi.ControllerExpandVolumeRequest(**ids, capacity_range=capacity))
    expand = csi.NodeExpandVolumeRequest(**ids, volume_path=str(pod), capacity_range=capacity)
    await twice(node.NodeExpandVolume, expand)
    assert total(pod) - before == SIZE
    stats = await node.NodeGetVolumeStats(csi.NodeGetVolumeStatsRequest(**ids, volume_path=str(pod)))
    assert stats.usage[0].total == total(pod)
    with pytest.raises(grpc.aio.AioRpcError, match="web-1"):
        await controller.DeleteVolume(csi.DeleteVolumeRequest(**ids))

    assert (staging / "record").read_text() == "acknowledged"
    await twice(node.NodeUnpublishVolume, csi.NodeUnpublishVolumeRequest(**ids, target_path=str(pod)))
    await unstage(node, ids["volume_id"], staging)
    assert (pod.exists(), os.path.ismount(staging)) == (False, False)
    await twice(controller.DeleteVolume, csi.DeleteVolumeRequest(**ids))
    assert not (await controller.ListVolumes(csi.ListVolumesRequest())).entries


async def test_copy_has_the_bytes_of_the_snapshot(plugin: tuple[Any, Any], place: Path) -> None:
    (controller, node), first, second = plugin, place / "first", place / "second"
    volume_id = await a_volume(controller, "pvc-1")
    await stage(node, volume_id, first)
    record(first / "record", "acknowledged")
    request = csi.CreateSnapshotRequest(source_volume_id=volume_id, name="daily")
    snapshot = (await twice(controller.CreateSnapshot, request)).snapshot
    record(first / "record", "later")

    copy_id = await a_volume(controller, "copy", volume_content_source=from_snapshot(snapshot.snapshot_id))
    await stage(node, copy_id, second)
    assert ((second / "record").read_text(), (first / "record").read_text()) == ("acknowledged", "later")
    await unstage(node, copy_id, second)
    await unstage(node, volume_id, first)
    await twice(controller.DeleteSnapshot, csi.DeleteSnapshotRequest(snapshot_id=snapshot.snapshot_id))
    for one in (copy_id, volume_id):
        await twice(controller.DeleteVolume, csi.DeleteVolumeRequest(volume_id=one))
