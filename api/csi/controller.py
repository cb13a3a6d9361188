"""The service Controller: what it can do, how much room there is, and its calls."""

from collections.abc import Mapping
from typing import Final

from api.csi import csi_pb2 as csi
from api.csi.api import Api
from api.csi.capabilities import unsupported
from api.csi.creation import create_volume
from api.csi.errors import invalid
from api.csi.service import Call
from api.csi.snapshots import create_snapshot, delete_snapshot, list_snapshots
from api.csi.volumes import delete_volume, expand_volume, get_volume, list_volumes, validate_capabilities
from domain.storage.filesystems import FILESYSTEMS
from domain.volumes.model import MAX_SIZE

_Capability = csi.ControllerServiceCapability
_Rpc = _Capability.RPC
_CAPABILITIES: Final = (
    *(_Rpc.CREATE_DELETE_VOLUME, _Rpc.LIST_VOLUMES, _Rpc.GET_CAPACITY, _Rpc.EXPAND_VOLUME, _Rpc.CLONE_VOLUME),
    *(_Rpc.CREATE_DELETE_SNAPSHOT, _Rpc.LIST_SNAPSHOTS),
    *(_Rpc.GET_VOLUME, _Rpc.VOLUME_CONDITION, _Rpc.SINGLE_NODE_MULTI_WRITER),
)


def get_capabilities(_: Api, __: csi.ControllerGetCapabilitiesRequest) -> csi.ControllerGetCapabilitiesResponse:
    """Return what the controller can do. It publishes nothing: a node attaches its volumes itself."""
    return csi.ControllerGetCapabilitiesResponse(
        capabilities=[_Capability(rpc=_Rpc(type=one)) for one in _CAPABILITIES]
    )


def get_capacity(api: Api, request: csi.GetCapacityRequest) -> csi.GetCapacityResponse:
    """Return what can still be written on a backend: the parameter's or the default.

    A backend without a limit, and one whose capacity the key may not see, have room for the largest volume.
    """
    limits = {"maximum_volume_size": {"value": MAX_SIZE}, "minimum_volume_size": {"value": min(FILESYSTEMS.values())}}
    if any(map(unsupported, request.volume_capabilities)):
        return csi.GetCapacityResponse(available_capacity=0)
    name = request.parameters.get("backend", "")
    backends = [one for one in api.get("/backends")["items"] if name in ("", one["name"])]
    if name and not backends:
        raise invalid(f"there is no backend {name!r}")
    free = backends[0]["free"] if backends else 0
    return csi.GetCapacityResponse(available_capacity=MAX_SIZE if free is None else free, **limits)


CALLS: Final[Mapping[str, Call]] = {
    "CreateVolume": create_volume,
    "DeleteVolume": delete_volume,
    "ValidateVolumeCapabilities": validate_capabilities,
    "ListVolumes": list_volumes,
    "GetCapacity": get_capacity,
    "ControllerGetCapabilities": get_capabilities,
    "CreateSnapshot": create_snapshot,
    "DeleteSnapshot": delete_snapshot,
    "ListSnapshots": list_snapshots,
    "ControllerExpandVolume": expand_volume,
    "ControllerGetVolume": get_volume,
}
