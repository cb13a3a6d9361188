"""A worker killed with -9 while an orchestrator repeats its call: the call finds the same job, and its effect once."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import grpc
import pytest

from api.cli.client import ApiClient
from api.cli.http import HttpClient
from api.csi import csi_pb2 as csi
from api.csi.server import serving
from api.main import create_app
from domain.services import open_services
from tests.acceptance.cluster import Cluster
from tests.acceptance.waiting import TIMEOUT_SECONDS, exit_code
from tests.support import keys, servers
from tests.support.worker import running_worker
from tests.unit.csi_client import STUBS, mount, new_volume, size

MIB = 2**20
SMALL, LARGE = 32 * MIB, 64 * MIB


@asynccontextmanager
async def plugin(cluster: Cluster, folder: Path) -> AsyncIterator[Any]:
    """The controller's stub, with the plugin, the API and the database behind it, and no worker."""
    endpoint = f"unix://{folder}/csi.sock"
    async with (
        open_services(cluster.settings, adopt=True) as services,
        servers.serving(create_app(lambda: nullcontext(services))) as server,
    ):
        port = server.servers[0].sockets[0].getsockname()[1]
        client = ApiClient(HttpClient(f"http://127.0.0.1:{port}", keys.BEARER))
        async with serving(client, endpoint, "web-1"), grpc.aio.insecure_channel(endpoint) as channel:
            yield STUBS[1](channel)


async def repeated(call: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
    """Repeat a call as an orchestrator does while its job is at work."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            try:
                return await call(request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ABORTED:
                    raise
                await asyncio.sleep(0.1)


async def a_volume(controller: Any, cluster: Cluster) -> str:
    async with running_worker(cluster.settings):
        return str((await repeated(controller.CreateVolume, creation("first"))).volume.volume_id)


def creation(name: str) -> Any:
    return new_volume(name, capacity_range=size(SMALL), volume_capabilities=[mount("ext4")])


@pytest.mark.parametrize("kind", ["CreateVolume", "ControllerExpandVolume", "CreateSnapshot", "DeleteVolume"])
async def test_call_whose_worker_is_killed_has_its_effect_once(cluster: Cluster, tmp_path: Path, kind: str) -> None:
    async with plugin(cluster, tmp_path) as controller:
        first = await a_volume(controller, cluster)
        request = {
            "CreateVolume": creation("second"),
            "ControllerExpandVolume": csi.ControllerExpandVolumeRequest(volume_id=first, capacity_range=size(LARGE)),
            "CreateSnapshot": csi.CreateSnapshotRequest(source_volume_id=first, name="kept"),
            "DeleteVolume": csi.DeleteVolumeRequest(volume_id=first),
        }[kind]
        victim = cluster.start_worker(
            "tests.acceptance.sabotage", SABOTAGE_TRANSITION="after publishing", SABOTAGE_FAULT="kill"
        )
        calling = asyncio.create_task(repeated(getattr(controller, kind), request))
        assert await exit_code(victim) == -signal.SIGKILL
        async with running_worker(cluster.settings):
            answer = await calling
            again = await repeated(getattr(controller, kind), request)
        volumes = await controller.ListVolumes(csi.ListVolumesRequest())
        snapshots = await controller.ListSnapshots(csi.ListSnapshotsRequest())

    assert again == answer
    counts = {"CreateVolume": (2, 0), "CreateSnapshot": (1, 1), "DeleteVolume": (0, 0)}
    assert (len(volumes.entries), len(snapshots.entries)) == counts.get(kind, (1, 0))
    if kind == "ControllerExpandVolume":
        assert (cluster.volumes / first / "data").stat().st_size == LARGE
