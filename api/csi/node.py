"""The service Node: attachments of this node, which `cistern node` mounts at the paths of the orchestrator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from grpc import StatusCode

from api.cli.client import ApiCallFailed, JsonObject
from api.csi import csi_pb2 as csi
from api.csi.api import Api
from api.csi.capabilities import READ_ONLY, SINGLE_WRITER, mismatch, missing
from api.csi.errors import CallRejected, invalid, not_found, out_of_range, refused
from api.csi.messages import condition_message
from api.csi.service import Call
from api.csi.sizes import require_range
from api.csi.volumes import is_grown, volume_of

#: The holder of the mount that all containers of the node share. Others are named after their target.
_PREFIX: Final = "csi:"
STAGE: Final = f"{_PREFIX}stage"

_Capability = csi.NodeServiceCapability
_Rpc = _Capability.RPC
_CAPABILITIES: Final = (
    *(_Rpc.STAGE_UNSTAGE_VOLUME, _Rpc.GET_VOLUME_STATS, _Rpc.EXPAND_VOLUME),
    *(_Rpc.VOLUME_CONDITION, _Rpc.SINGLE_NODE_MULTI_WRITER),
)


def get_info(api: Api, _: csi.NodeGetInfoRequest) -> csi.NodeGetInfoResponse:
    """Return what `cistern node` calls this host."""
    return csi.NodeGetInfoResponse(node_id=api.node)


def get_capabilities(_: Api, __: csi.NodeGetCapabilitiesRequest) -> csi.NodeGetCapabilitiesResponse:
    """Return what a node can do."""
    return csi.NodeGetCapabilitiesResponse(capabilities=[_Capability(rpc=_Rpc(type=one)) for one in _CAPABILITIES])


def stage_volume(api: Api, request: csi.NodeStageVolumeRequest) -> csi.NodeStageVolumeResponse:
    """Attach a volume to this node, and mount it where the orchestrator wants to have it once per node.

    Raises:
        CallRejected: the request is invalid or contradicts an earlier one, or the volume is on another node.
    """
    volume = _volume_to_mount(api, request, request.staging_target_path)
    mode = "ro" if request.volume_capability.access_mode.mode == READ_ONLY else "rw"
    _attach(api, volume, STAGE, request.staging_target_path, mode)
    return csi.NodeStageVolumeResponse()


def unstage_volume(api: Api, request: csi.NodeUnstageVolumeRequest) -> csi.NodeUnstageVolumeResponse:
    """Detach what `stage_volume` has attached."""
    _detach(api, request.volume_id, STAGE, request.staging_target_path)
    return csi.NodeUnstageVolumeResponse()


def publish_volume(api: Api, request: csi.NodePublishVolumeRequest) -> csi.NodePublishVolumeResponse:
    """Mount a staged volume for a container.

    Raises:
        CallRejected: as `stage_volume`; or the volume is not staged, or has its only container already.
    """
    volume = _volume_to_mount(api, request, request.target_path)
    if not request.staging_target_path:
        raise refused("staging_target_path is missing")
    holder = _PREFIX + request.target_path
    mode = request.volume_capability.access_mode.mode
    held = {one["holder"] for one in _attachments(api, volume) if one["holder"].startswith(_PREFIX)}
    if STAGE not in held:
        raise refused(f"the volume is not staged on node {api.node}")
    if mode == SINGLE_WRITER and (others := held - {STAGE, holder}):
        raise refused(f"the volume is published at {min(others).removeprefix(_PREFIX)}, and may be at one path only")
    _attach(api, volume, holder, request.target_path, "ro" if request.readonly or mode == READ_ONLY else "rw")
    return csi.NodePublishVolumeResponse()


def unpublish_volume(api: Api, request: csi.NodeUnpublishVolumeRequest) -> csi.NodeUnpublishVolumeResponse:
    """Unmount a volume of a container, and remove the directory: the orchestrator leaves that to the plugin."""
    _detach(api, request.volume_id, _PREFIX + request.target_path, request.target_path)
    try:
        Path(request.target_path).rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CallRejected(StatusCode.INTERNAL, f"{request.target_path}: {error.strerror}") from error
    return csi.NodeUnpublishVolumeResponse()


def expand_volume(api: Api, request: csi.NodeExpandVolumeRequest) -> csi.NodeExpandVolumeResponse:
    """Wait until this node has grown the file system: it does so by itself, in seconds.

    Raises:
        CallRejected: it has not grown yet or cannot, or the volume is not mounted there.
    """
    volume = _mounted(api, request.volume_id, request.volume_path)
    required, limit = require_range(request.capacity_range)
    if volume["size"] < required or 0 < limit < volume["size"]:
        raise out_of_range(f"the volume has {volume['size']} bytes; the controller expands it")
    while not is_grown(volume):
        if volume["filesystem_error"] is not None:
            raise CallRejected(StatusCode.INTERNAL, condition_message(volume).message)
        api.wait(volume["job_id"] or f"of node {api.node}")
        volume = api.get(f"/volumes/{volume['id']}")
    return csi.NodeExpandVolumeResponse(capacity_bytes=volume["size"])


def get_volume_stats(api: Api, request: csi.NodeGetVolumeStatsRequest) -> csi.NodeGetVolumeStatsResponse:
    """Return the bytes and inodes of a file system, as its node has last reported them.

    Raises:
        CallRejected: the volume is not mounted there, or its node has not reported yet.
    """
    volume = _mounted(api, request.volume_id, request.volume_path)
    if volume["filesystem_size"] is None:
        raise CallRejected(StatusCode.UNAVAILABLE, f"node {api.node} has not measured the file system yet")
    usage = [_usage(csi.VolumeUsage.BYTES, volume["filesystem_size"], volume["filesystem_used"] or 0)]
    if volume["inodes"]:  # btrfs has no fixed number
        usage.append(_usage(csi.VolumeUsage.INODES, volume["inodes"], volume["inodes_used"] or 0))
    return csi.NodeGetVolumeStatsResponse(usage=usage, volume_condition=condition_message(volume))


def _usage(unit: csi.VolumeUsage.Unit, total: int, used: int) -> csi.VolumeUsage:
    return csi.VolumeUsage(unit=unit, total=total, used=used, available=max(total - used, 0))


def _volume_to_mount(api: Api, request: Any, path: str) -> JsonObject:
    """Return the volume of a request that has a capability and a path, if it has that capability."""
    if not request.volume_id or not request.HasField("volume_capability"):
        raise invalid("volume_id and volume_capability are needed")
    if reason := missing(request.volume_capability):
        raise invalid(reason)
    _require_path(path)
    volume = volume_of(api, request.volume_id)
    if reason := mismatch(request.volume_capability, volume["filesystem"]):
        raise refused(reason)
    return volume


def _require_path(path: str) -> None:
    if not path.startswith("/"):
        raise invalid("an absolute path is needed")


def _mounted(api: Api, volume_id: str, path: str) -> JsonObject:
    """Return the volume that is mounted at a path of this node."""
    if not volume_id:
        raise invalid("volume_id is missing")
    _require_path(path)
    volume = volume_of(api, volume_id)
    if path not in [one["path"] for one in _attachments(api, volume)]:
        raise not_found(f"volume {volume['name']!r} is not mounted at {path} of node {api.node}")
    return volume


def _attachments(api: Api, volume: JsonObject) -> list[JsonObject]:
    found = api.list_all(f"/volumes/{volume['id']}/attachments")
    return [one for one in found if one["node"] == api.node]


def _attach(api: Api, volume: JsonObject, holder: str, path: str, mode: str) -> None:
    """Attach a volume. Also if it is attached already: after a restart of the host, the job mounts it anew."""
    body = {"node": api.node, "holder": holder, "mode": mode, "path": path}
    try:
        api.carry_out("POST", f"/volumes/{volume['id']}/attachments", body)
    except ApiCallFailed as error:
        attached = (error.problem.get("node"), error.problem.get("holder"))
        if error.problem_code == "volume-attached" and attached == (api.node, holder):
            raise CallRejected(StatusCode.ALREADY_EXISTS, f"{path}: {error.message}") from error
        raise


def _detach(api: Api, volume_id: str, holder: str, path: str) -> None:
    """Detach a volume, if this node has it for the holder at the path.

    Raises:
        CallRejected: the request is invalid, there is no such volume, or the job is still at work.
    """
    if not volume_id:
        raise invalid("volume_id is missing")
    _require_path(path)
    volume = volume_of(api, volume_id)
    for one in _attachments(api, volume):
        if (one["holder"], one["path"]) == (holder, path):
            try:
                api.carry_out("DELETE", f"/volumes/{volume['id']}/attachments/{one['id']}")
            except ApiCallFailed as error:
                if not error.problem_code.endswith("not-found"):
                    raise


CALLS: Final[Mapping[str, Call]] = {
    "NodeGetInfo": get_info,
    "NodeGetCapabilities": get_capabilities,
    "NodeStageVolume": stage_volume,
    "NodeUnstageVolume": unstage_volume,
    "NodePublishVolume": publish_volume,
    "NodeUnpublishVolume": unpublish_volume,
    "NodeExpandVolume": expand_volume,
    "NodeGetVolumeStats": get_volume_stats,
}
