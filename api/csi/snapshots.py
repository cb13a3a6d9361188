"""Calls of the controller about snapshots."""

from typing import Any

from grpc import StatusCode

from api.cli.client import ApiCallFailed, JsonObject
from api.csi import csi_pb2 as csi
from api.csi.api import Api, valid_id
from api.csi.creation import require_name
from api.csi.errors import CallRejected, at_work, invalid
from api.csi.messages import is_cut, snapshot_message
from api.csi.paging import page_of
from api.csi.parameters import snapshot_members
from api.csi.volumes import delete, volume_of
from domain.operations import SnapshotState

_Listed = csi.ListSnapshotsResponse


def create_snapshot(api: Api, request: csi.CreateSnapshotRequest) -> csi.CreateSnapshotResponse:
    """Take a snapshot. Its name is the orchestrator's: a repeated call finds the same snapshot.

    Raises:
        CallRejected: the request is invalid, another volume has a snapshot of this name, or the job is still at work.
    """
    if not request.source_volume_id or not request.name:
        raise invalid("source_volume_id and name are needed")
    name, members = require_name(request.name), snapshot_members(request.parameters)
    volume = volume_of(api, request.source_volume_id)
    snapshot = _named(api, name, volume["id"])
    if snapshot is not None and snapshot["state"] == SnapshotState.ERROR:
        delete(api, "snapshots", snapshot["id"])  # it never had bytes
        snapshot = None
    if snapshot is None:
        snapshot = _take(api, volume["id"], {"name": name, **members})
    if snapshot["state"] == SnapshotState.TAKING:
        api.succeeded(api.get(f"/jobs/{snapshot['job_id']}"))
        snapshot = api.get(f"/snapshots/{snapshot['id']}")
    if not is_cut(snapshot):
        raise at_work(snapshot["job_id"])
    return csi.CreateSnapshotResponse(snapshot=snapshot_message(snapshot))


def _named(api: Api, name: str, volume_id: str) -> JsonObject | None:
    """Return the snapshot of a volume with a name, which is unique for the orchestrator: no other volume may have it.

    Raises:
        CallRejected: another one has.
    """
    found = api.list_all("/snapshots", name=name)
    for snapshot in found:
        if snapshot["volume_id"] == volume_id:
            return snapshot
    if found:
        message = f"snapshot {name!r} exists and is one of volume {found[0]['volume_id']}"
        raise CallRejected(StatusCode.ALREADY_EXISTS, message)
    return None


def _take(api: Api, volume_id: str, body: dict[str, Any]) -> JsonObject:
    """Take the snapshot, or find that another call has just begun to do so."""
    try:
        job = api.carry_out("POST", f"/volumes/{volume_id}/snapshots", body)
    except ApiCallFailed as error:
        snapshot = _named(api, body["name"], volume_id) if error.problem_code == "name-taken" else None
        if snapshot is None:
            raise
        return snapshot
    return api.get(f"/snapshots/{job['snapshot_id']}")


def delete_snapshot(api: Api, request: csi.DeleteSnapshotRequest) -> csi.DeleteSnapshotResponse:
    """Delete a snapshot; one that does not exist has been deleted."""
    delete(api, "snapshots", request.snapshot_id)
    return csi.DeleteSnapshotResponse()


def list_snapshots(api: Api, request: csi.ListSnapshotsRequest) -> csi.ListSnapshotsResponse:
    """List the snapshots of the key's project, newest first; or those of one volume, or one."""
    snapshots, token = _selected(api, request)
    entries = [_Listed.Entry(snapshot=snapshot_message(one)) for one in snapshots if is_cut(one)]
    return _Listed(entries=entries, next_token=token)


def _selected(api: Api, request: csi.ListSnapshotsRequest) -> tuple[list[JsonObject], str]:
    volume_id = valid_id(request.source_volume_id)
    if request.snapshot_id:
        known = valid_id(request.snapshot_id)
        snapshot = None if known is None else api.find(f"/snapshots/{known}")
        found = [] if snapshot is None else [snapshot]
        return [one for one in found if not request.source_volume_id or one["volume_id"] == volume_id], ""
    if request.source_volume_id and volume_id is None:
        return [], ""
    filters = {} if volume_id is None else {"volume_id": volume_id}
    return page_of(api, "/snapshots", request.max_entries, request.starting_token, **filters)
