"""Routes of snapshots."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.accepted import AcceptedDep
from api.dependencies import JsonBody, NoQuery, OriginDep, SnapshotsDep, VolumesDep
from api.etag import IfNoneMatchDep, row_tag
from api.openapi import BODY, accepts, documented_get, errors
from api.schemas.jobs import JobOut
from api.schemas.pagination import Paginated, paginated_response
from api.schemas.snapshots import SnapshotIn, SnapshotOut, SnapshotQuery, SnapshotsOfVolumeQuery
from domain.errors import (
    BadCursor,
    NameTaken,
    SnapshotBusy,
    SnapshotNotFound,
    SnapshotUnusable,
    VolumeBusy,
    VolumeNotFound,
    VolumeUnusable,
)

router = APIRouter(tags=["snapshots"])


@router.post(
    "/volumes/{volume_id}/snapshots",
    status_code=202,
    operation_id="take_snapshot",
    summary="Take a snapshot",
    responses=accepts(*BODY, VolumeNotFound, VolumeBusy, VolumeUnusable, NameTaken),
    dependencies=[NoQuery, JsonBody],
)
async def take_snapshot(
    volume_id: UUID, body: SnapshotIn, snapshots: SnapshotsDep, origin: OriginDep, accepted: AcceptedDep
) -> JobOut:
    """Take a snapshot of a volume. It is listed at once, and usable when the job has succeeded."""
    return await accepted(await snapshots.request_take(volume_id, body.name, origin=origin))


@router.get(
    "/volumes/{volume_id}/snapshots",
    operation_id="list_snapshots_of_volume",
    summary="List a volume's snapshots",
    responses=errors(VolumeNotFound, BadCursor),
)
async def list_snapshots_of_volume(
    volume_id: UUID, query: Annotated[SnapshotsOfVolumeQuery, Query()], volumes: VolumesDep, snapshots: SnapshotsDep
) -> Paginated[SnapshotOut]:
    """List a volume's snapshots, newest first."""
    await volumes.get(volume_id)
    page = await snapshots.list_snapshots(query.filters(volume_id), query.page_of(f"snapshots of {volume_id}"))
    return paginated_response(page, SnapshotOut.model_validate)


@router.get("/snapshots", operation_id="list_snapshots", summary="List snapshots", responses=errors(BadCursor))
async def list_snapshots(query: Annotated[SnapshotQuery, Query()], snapshots: SnapshotsDep) -> Paginated[SnapshotOut]:
    """List the snapshots of all volumes, newest first."""
    page = await snapshots.list_snapshots(query.filters(query.volume_id), query.page_of("snapshots"))
    return paginated_response(page, SnapshotOut.model_validate)


@router.get(
    "/snapshots/{snapshot_id}",
    operation_id="get_snapshot",
    summary="Get a snapshot",
    response_model=SnapshotOut,
    responses=documented_get("snapshot") | errors(SnapshotNotFound),
    dependencies=[NoQuery],
)
async def get_snapshot(
    snapshot_id: UUID, snapshots: SnapshotsDep, if_none_match: IfNoneMatchDep
) -> SnapshotOut | Response:
    """Return a snapshot."""
    snapshot = await snapshots.get(snapshot_id)
    return if_none_match.not_modified(row_tag(snapshot)) or SnapshotOut.model_validate(snapshot)


@router.post(
    "/snapshots/{snapshot_id}/restore",
    status_code=202,
    operation_id="restore_snapshot",
    summary="Restore a volume",
    responses=accepts(SnapshotNotFound, SnapshotBusy, SnapshotUnusable, VolumeNotFound, VolumeBusy, VolumeUnusable),
    dependencies=[NoQuery],
)
async def restore_snapshot(
    snapshot_id: UUID, snapshots: SnapshotsDep, origin: OriginDep, accepted: AcceptedDep
) -> JobOut:
    """Restore the volume's data from a snapshot. It keeps its present size; bytes past the snapshot are zeros."""
    return await accepted(await snapshots.request_restore(snapshot_id, origin=origin))


@router.delete(
    "/snapshots/{snapshot_id}",
    status_code=202,
    operation_id="delete_snapshot",
    summary="Delete a snapshot",
    responses=accepts(SnapshotNotFound, SnapshotBusy),
    dependencies=[NoQuery],
)
async def delete_snapshot(
    snapshot_id: UUID, snapshots: SnapshotsDep, origin: OriginDep, accepted: AcceptedDep
) -> JobOut:
    """Delete a snapshot. Volumes that were created from it are not affected."""
    return await accepted(await snapshots.request_delete(snapshot_id, origin=origin))
