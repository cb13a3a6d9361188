"""Volumes and snapshots of the API as messages of the interface."""

from datetime import datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from api.cli.client import JsonObject
from api.csi import csi_pb2 as csi
from domain.operations import SnapshotState, VolumeState

_Source: Final = csi.VolumeContentSource


def volume_message(volume: JsonObject) -> csi.Volume:
    """Return a volume with its present size and what it was made from."""
    return csi.Volume(
        volume_id=volume["id"], capacity_bytes=volume["size"], content_source=_source_message(volume["source"])
    )


def _source_message(source: JsonObject | None) -> csi.VolumeContentSource | None:
    if source is None:
        return None
    if (snapshot_id := source.get("snapshot_id")) is not None:
        return _Source(snapshot=_Source.SnapshotSource(snapshot_id=snapshot_id))
    return _Source(volume=_Source.VolumeSource(volume_id=source["volume_id"]))


def condition_message(volume: JsonObject) -> csi.VolumeCondition:
    """Return whether something is wrong with a volume, and what."""
    if volume["state"] == VolumeState.ERROR:
        error = volume["last_error"] or {"code": "error", "detail": "the volume is unusable"}
        return csi.VolumeCondition(abnormal=True, message=f"{error['detail']} ({error['code']})")
    if volume["filesystem_error"] is not None:
        return csi.VolumeCondition(
            abnormal=True, message=f"the file system has not grown: {volume['filesystem_error']}"
        )
    return csi.VolumeCondition(abnormal=False, message="the volume is usable")


def snapshot_message(snapshot: JsonObject) -> csi.Snapshot:
    """Return a snapshot."""
    created = Timestamp()
    created.FromDatetime(datetime.fromisoformat(snapshot["created_at"]))
    return csi.Snapshot(
        snapshot_id=snapshot["id"],
        source_volume_id=snapshot["volume_id"],
        size_bytes=snapshot["size"],
        creation_time=created,
        ready_to_use=is_cut(snapshot),
    )


def is_cut(snapshot: JsonObject) -> bool:
    """Return whether a snapshot has its bytes, and is not about to lose them."""
    return snapshot["state"] in (SnapshotState.READY, SnapshotState.RESTORING, SnapshotState.CLONING)
