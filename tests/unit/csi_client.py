"""A client of the CSI plugin over its generated stubs, on a real socket, beside an API in memory."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from api.cli.client import ApiClient
from api.csi import csi_pb2 as csi
from api.csi.csi_pb2_grpc import ControllerStub, IdentityStub, NodeStub
from api.csi.server import serving
from tests.unit.fake_cistern import FakeCistern

Mode = csi.VolumeCapability.AccessMode
MIB, GIB = 2**20, 2**30
STUBS: tuple[Any, ...] = (IdentityStub, ControllerStub, NodeStub)
#: The id of nothing.
NOBODY = "01a0b1c2-0000-7000-8000-000000000000"
#: Calls in these tests wait for a job for so long, in seconds.
PATIENCE = 0.3


class Plugin(NamedTuple):
    identity: Any
    controller: Any
    node: Any
    #: What is behind it.
    cistern: FakeCistern
    folder: Path

    async def volume(self, name: str = "pvc-1", **members: Any) -> csi.Volume:
        """Create a volume of 1 GiB with ext4."""
        created: csi.CreateVolumeResponse = await self.controller.CreateVolume(new_volume(name, **members))
        return created.volume

    async def snapshot(self, volume: csi.Volume, name: str = "snapshot-1", **members: Any) -> csi.Snapshot:
        request = csi.CreateSnapshotRequest(source_volume_id=volume.volume_id, name=name, **members)
        created: csi.CreateSnapshotResponse = await self.controller.CreateSnapshot(request)
        return created.snapshot


@asynccontextmanager
async def open_plugin(folder: Path) -> AsyncIterator[Plugin]:
    """Run the plugin of node-1."""
    cistern, endpoint = FakeCistern(), f"unix://{folder}/csi.sock"
    async with (
        serving(ApiClient(cistern), endpoint, "node-1", patience=PATIENCE),
        grpc.aio.insecure_channel(endpoint) as channel,
    ):
        identity, controller, node = (stub(channel) for stub in STUBS)
        yield Plugin(identity, controller, node, cistern, folder)


def mount(fs_type: str = "", mode: Any = Mode.SINGLE_NODE_WRITER, **members: Any) -> csi.VolumeCapability:
    volume = csi.VolumeCapability.MountVolume(fs_type=fs_type, **members)
    return csi.VolumeCapability(mount=volume, access_mode=Mode(mode=mode))


def block() -> csi.VolumeCapability:
    return csi.VolumeCapability(
        block=csi.VolumeCapability.BlockVolume(), access_mode=Mode(mode=Mode.SINGLE_NODE_WRITER)
    )


def size(required: int = 0, limit: int = 0) -> csi.CapacityRange:
    return csi.CapacityRange(required_bytes=required, limit_bytes=limit)


def new_volume(name: str = "pvc-1", **members: Any) -> csi.CreateVolumeRequest:
    defaults: dict[str, Any] = {"volume_capabilities": [mount()], "capacity_range": size(GIB)}
    return csi.CreateVolumeRequest(name=name, **(defaults | members))


def from_snapshot(snapshot_id: str) -> csi.VolumeContentSource:
    return csi.VolumeContentSource(snapshot=csi.VolumeContentSource.SnapshotSource(snapshot_id=snapshot_id))


def from_volume(volume_id: str) -> csi.VolumeContentSource:
    return csi.VolumeContentSource(volume=csi.VolumeContentSource.VolumeSource(volume_id=volume_id))


async def rejection(call: Awaitable[Any]) -> tuple[str, str]:
    """Return the name of the status that a call is rejected with, and the message."""
    with pytest.raises(grpc.aio.AioRpcError) as rejected:
        await call
    return rejected.value.code().name, rejected.value.details() or ""


async def status(call: Awaitable[Any]) -> str:
    """Return the name of the status that a call is rejected with."""
    return (await rejection(call))[0]
