"""CreateVolume. The name that the orchestrator gives is the volume's: a repeated call finds the same volume."""

import re
from typing import Any, Final, NamedTuple

from grpc import StatusCode

from api.cli.client import ApiCallFailed, JsonObject
from api.csi import csi_pb2 as csi
from api.csi.api import Api, valid_id
from api.csi.capabilities import DEFAULT_FILESYSTEM, require_complete, wanted_filesystem
from api.csi.errors import CallRejected, at_work, invalid, not_found, out_of_range, refused
from api.csi.messages import volume_message
from api.csi.parameters import filesystem_parameter, volume_members
from api.csi.sizes import DEFAULT_SIZE, is_within, require_range, size_within
from domain.operations import VolumeState
from domain.storage.filesystems import FILESYSTEMS
from domain.volumes.model import MAX_NAME

_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")
#: How the kinds of jobs end that leave a volume which has never been usable, if they fail.
_CREATIONS: Final = (".create", ".clone")


class _Source(NamedTuple):
    """What a new volume shall begin with: a member of the request to the API, and what follows from it."""

    member: str
    id: str
    size: int
    filesystem: str | None

    def is_that_of(self, volume: JsonObject) -> bool:
        """Return whether a volume has been made from it."""
        shown = "snapshot_id" if self.member == "from_snapshot" else "volume_id"
        return volume["source"] is not None and volume["source"].get(shown) == self.id


class _Wanted(NamedTuple):
    """The volume that a request describes."""

    name: str
    capacity: csi.CapacityRange
    filesystem: str
    source: _Source | None
    members: dict[str, Any]


def create_volume(api: Api, request: csi.CreateVolumeRequest) -> csi.CreateVolumeResponse:
    """Create a volume: empty with a file system, from a snapshot, or from another volume.

    Raises:
        CallRejected: the request is invalid, contradicts a volume of this name, or is still at work.
    """
    wanted = _wanted(api, request)
    volume = _named(api, wanted.name)
    if volume is None:
        volume = _create(api, wanted)
    else:
        _require_same(volume, wanted)
        volume = _usable(api, volume)
    return csi.CreateVolumeResponse(volume=volume_message(volume))


def require_name(name: str) -> str:
    """Return a name that Cistern accepts too.

    Raises:
        CallRejected: it does not.
    """
    if not _NAME.fullmatch(name):
        raise invalid(f"name {name!r}: up to {MAX_NAME} letters, digits, `.`, `_` and `-` are needed")
    return name


def _wanted(api: Api, request: csi.CreateVolumeRequest) -> _Wanted:
    name = require_name(request.name)
    require_complete(request.volume_capabilities)
    if request.mutable_parameters:
        raise invalid("mutable parameters are not supported")
    require_range(request.capacity_range)
    members = volume_members(request.parameters)
    filesystem = wanted_filesystem(request.volume_capabilities, filesystem_parameter(request.parameters))
    source = _source(api, request.volume_content_source)
    if source is None:
        return _Wanted(name, request.capacity_range, filesystem or DEFAULT_FILESYSTEM, None, members)
    if source.filesystem is None:
        raise invalid("the source has no file system")
    if filesystem not in (None, source.filesystem):
        raise invalid(f"the source has the file system {source.filesystem}, not {filesystem}")
    return _Wanted(name, request.capacity_range, source.filesystem, source, members)


def _source(api: Api, source: csi.VolumeContentSource) -> _Source | None:
    match source.WhichOneof("type"):
        case "snapshot":
            snapshot = _existing(api, "snapshots", source.snapshot.snapshot_id)
            volume = api.get(f"/volumes/{snapshot['volume_id']}")
            return _Source("from_snapshot", snapshot["id"], snapshot["size"], volume["filesystem"])
        case "volume":
            volume = _existing(api, "volumes", source.volume.volume_id)
            return _Source("from_volume", volume["id"], volume["size"], volume["filesystem"])
    return None


def _existing(api: Api, kind: str, source_id: str) -> JsonObject:
    known = valid_id(source_id)
    found = None if known is None else api.find(f"/{kind}/{known}")
    if found is None:
        raise not_found(f"source {source_id!r} is not among the {kind}")
    return found


def _named(api: Api, name: str) -> JsonObject | None:
    return next(iter(api.list_all("/volumes", name=name)), None)


def _create(api: Api, wanted: _Wanted) -> JsonObject:
    """Create the volume, or find that another call has just begun to do so."""
    source = wanted.source
    minimum = FILESYSTEMS[wanted.filesystem] if source is None else source.size
    size = size_within(wanted.capacity, minimum, DEFAULT_SIZE if source is None else source.size)
    body = {**wanted.members, "name": wanted.name, "size": size}
    body |= {"filesystem": wanted.filesystem} if source is None else {source.member: source.id}
    try:
        job = api.carry_out("POST", "/volumes", body)
    except ApiCallFailed as error:
        volume = _named(api, wanted.name) if error.problem_code == "name-taken" else None
        if volume is None:
            raise
        _require_same(volume, wanted)
        return _usable(api, volume)
    return api.get(f"/volumes/{job['volume_id']}")


def _require_same(volume: JsonObject, wanted: _Wanted) -> None:
    """Refuse a volume that is not what the request describes. Labels and autogrow may have changed since."""
    is_same_source = volume["source"] is None if wanted.source is None else wanted.source.is_that_of(volume)
    if wanted.source is not None and 0 < wanted.capacity.limit_bytes < wanted.source.size:
        raise out_of_range(f"the source has {wanted.source.size} bytes, more than the limit")
    different = [
        name
        for name, is_same in (
            ("size", is_within(volume["size"], wanted.capacity)),
            ("file system", volume["filesystem"] == wanted.filesystem),
            ("source", is_same_source),
            ("backend", wanted.members.get("backend", volume["backend"]) == volume["backend"]),
        )
        if not is_same
    ]
    if different:
        message = f"volume {wanted.name!r} exists and differs from the request: {', '.join(different)}"
        raise CallRejected(StatusCode.ALREADY_EXISTS, message)


def _usable(api: Api, volume: JsonObject) -> JsonObject:
    """Wait until a volume has been created; a creation that has failed is tried again.

    Raises:
        CallRejected: it is still at work, has failed again, or another operation has failed.
    """
    match volume["state"]:
        case VolumeState.CREATING:
            api.succeeded(api.get(f"/jobs/{volume['job_id']}"))
        case VolumeState.DELETING:
            raise at_work(volume["job_id"])
        case VolumeState.ERROR:
            job = api.get(f"/jobs/{volume['last_job_id']}")
            if not job["kind"].endswith(_CREATIONS):
                raise refused(f"volume {volume['name']!r} is unusable since job {job['id']}, {job['kind']}, has failed")
            api.carry_out("POST", f"/jobs/{job['id']}/retry")
        case _:
            return volume
    return api.get(f"/volumes/{volume['id']}")
