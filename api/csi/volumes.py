"""Calls of the controller about volumes that exist."""

from typing import Final

from api.cli.client import ApiCallFailed, JsonObject
from api.csi import csi_pb2 as csi
from api.csi.api import Api, valid_id
from api.csi.capabilities import mismatch, require_complete
from api.csi.errors import invalid, not_found, out_of_range
from api.csi.messages import condition_message, volume_message
from api.csi.paging import page_of
from api.csi.sizes import is_within, require_range, size_within
from domain.operations import VolumeState

_Expanded = csi.ControllerExpandVolumeResponse
_Validated = csi.ValidateVolumeCapabilitiesResponse
_Listed = csi.ListVolumesResponse
#: Volumes in these states are not there yet, or no more.
_UNLISTED: Final = (VolumeState.CREATING, VolumeState.DELETING)


def volume_of(api: Api, volume_id: str) -> JsonObject:
    """Return the volume with an id.

    Raises:
        CallRejected: the id is missing, or there is no such volume.
    """
    if not volume_id:
        raise invalid("volume_id is missing")
    known = valid_id(volume_id)
    if known is None:
        raise not_found(f"there is no volume {volume_id!r}")
    return api.get(f"/volumes/{known}")


def delete_volume(api: Api, request: csi.DeleteVolumeRequest) -> csi.DeleteVolumeResponse:
    """Delete a volume; one that does not exist has been deleted."""
    delete(api, "volumes", request.volume_id)
    return csi.DeleteVolumeResponse()


def delete(api: Api, kind: str, object_id: str) -> None:
    """Delete a volume or a snapshot, unless there is none.

    Raises:
        CallRejected: the id is missing, or the job has failed or is still at work.
    """
    if not object_id:
        raise invalid("the id is missing")
    known = valid_id(object_id)
    if known is None:
        return
    try:
        api.carry_out("DELETE", f"/{kind}/{known}")
    except ApiCallFailed as error:
        if error.problem_code not in ("volume-not-found", "snapshot-not-found"):
            raise


def expand_volume(api: Api, request: csi.ControllerExpandVolumeRequest) -> csi.ControllerExpandVolumeResponse:
    """Expand a volume to the size that is required at least. A file system that is in use is grown by its node.

    Raises:
        CallRejected: there is no such volume, or the size is not possible.
    """
    if not request.volume_id or not request.HasField("capacity_range"):
        raise invalid("volume_id and capacity_range are needed")
    require_range(request.capacity_range)
    if request.HasField("volume_capability") and request.volume_capability.WhichOneof("access_type") == "block":
        raise invalid("raw block volumes are not supported")
    volume = volume_of(api, request.volume_id)
    if volume["size"] < request.capacity_range.required_bytes:
        to_size = size_within(request.capacity_range, volume["size"])
        volume = _expand(api, volume, to_size)
    if not is_within(volume["size"], request.capacity_range):
        raise out_of_range(f"the volume has {volume['size']} bytes, and a volume cannot shrink")
    return _Expanded(capacity_bytes=volume["size"], node_expansion_required=not is_grown(volume))


def _expand(api: Api, volume: JsonObject, to_size: int) -> JsonObject:
    path = f"/volumes/{volume['id']}"
    try:
        api.carry_out("POST", f"{path}/expand", {"to": to_size})
    except ApiCallFailed as error:
        if error.problem_code != "shrink-refused":  # another call has expanded it meanwhile
            raise
    return api.get(path)


def is_grown(volume: JsonObject) -> bool:
    """Return whether the file system of a volume, if it has one, fills the volume."""
    return volume["filesystem"] is None or (volume["filesystem_grown_to"] or 0) >= volume["size"]


def validate_capabilities(api: Api, request: csi.ValidateVolumeCapabilitiesRequest) -> _Validated:
    """Confirm the capabilities if the volume has all of them, or say which it has not."""
    if not request.volume_id:
        raise invalid("volume_id is missing")
    require_complete(request.volume_capabilities)
    volume = volume_of(api, request.volume_id)
    for capability in request.volume_capabilities:
        if reason := mismatch(capability, volume["filesystem"]):
            return _Validated(message=reason)
    if request.mutable_parameters:
        return _Validated(message="mutable parameters are not supported")
    confirmed = _Validated.Confirmed(
        volume_context=request.volume_context,
        volume_capabilities=request.volume_capabilities,
        parameters=request.parameters,
    )
    return _Validated(confirmed=confirmed)


def list_volumes(api: Api, request: csi.ListVolumesRequest) -> csi.ListVolumesResponse:
    """List the volumes of the key's project, newest first, with what is wrong with them."""
    volumes, token = page_of(api, "/volumes", request.max_entries, request.starting_token)
    entries = [
        _Listed.Entry(volume=volume_message(one), status=_Listed.VolumeStatus(volume_condition=condition_message(one)))
        for one in volumes
        if one["state"] not in _UNLISTED
    ]
    return _Listed(entries=entries, next_token=token)


def get_volume(api: Api, request: csi.ControllerGetVolumeRequest) -> csi.ControllerGetVolumeResponse:
    """Return a volume, where it is attached, and what is wrong with it."""
    volume = volume_of(api, request.volume_id)
    attachments = api.list_all(f"/volumes/{volume['id']}/attachments")
    status = csi.ControllerGetVolumeResponse.VolumeStatus(
        published_node_ids=sorted({one["node"] for one in attachments}), volume_condition=condition_message(volume)
    )
    return csi.ControllerGetVolumeResponse(volume=volume_message(volume), status=status)
