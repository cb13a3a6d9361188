"""Routes of snapshots."""

from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.acceptance import AcceptedDep, OriginDep
from api.dependencies import ProjectDep, ServicesDep
from api.etag import NotModifiedDep, row_tag
from api.openapi import BODY, accepts, documented_get, errors
from api.schemas.jobs import JobOut
from api.schemas.pagination import Paginated, paginated_response
from api.schemas.snapshots import SnapshotIn, SnapshotOut, SnapshotQuery, SnapshotsOfVolumeQuery
from domain.errors import (
    BadCursor,
    NameTaken,
    QuotaExceeded,
    SnapshotBusy,
    SnapshotNotFound,
    SnapshotUnusable,
    VolumeAttached,
    VolumeBusy,
    VolumeNotFound,
    VolumeUnusable,
)

#: Errors of each operation on a snapshot, in every version of the API.
TAKE_ERRORS: Final = (*BODY, VolumeNotFound, VolumeBusy, VolumeUnusable, NameTaken, QuotaExceeded)
RESTORE_ERRORS: Final = (
    *(SnapshotNotFound, SnapshotBusy, SnapshotUnusable),
    *(VolumeNotFound, VolumeAttached, VolumeBusy, VolumeUnusable, QuotaExceeded),
)
DELETE_ERRORS: Final = (SnapshotNotFound, SnapshotBusy, QuotaExceeded)

router = APIRouter(tags=["snapshots"])


@router.post(
    "/volumes/{volume_id}/snapshots", status_code=202, summary="Take a snapshot", responses=accepts(*TAKE_ERRORS)
)
async def take_snapshot(
    volume_id: UUID, body: SnapshotIn, services: ServicesDep, origin: OriginDep, accepted: AcceptedDep
) -> JobOut:
    """Take a snapshot of a volume. It is listed at once, and usable when the job has succeeded."""
    return await accepted(await services.snapshots.request_take(volume_id, body.name, origin=origin))


@router.get(
    "/volumes/{volume_id}/snapshots", summary="List a volume's snapshots", responses=errors(VolumeNotFound, BadCursor)
)
async def list_snapshots_of_volume(
    volume_id: UUID, query: Annotated[SnapshotsOfVolumeQuery, Query()], services: ServicesDep, project_id: ProjectDep
) -> Paginated[SnapshotOut]:
    """List a volume's snapshots, newest first."""
    await services.volumes.get(volume_id, project_id=project_id)
    request = query.page_of(f"snapshots of {volume_id}", project_id)
    page = await services.snapshots.list_snapshots(query.filters(volume_id), request, project_id=project_id)
    return paginated_response(page, SnapshotOut.model_validate)


@router.get("/snapshots", summary="List snapshots", responses=errors(BadCursor))
async def list_snapshots(
    query: Annotated[SnapshotQuery, Query()], services: ServicesDep, project_id: ProjectDep
) -> Paginated[SnapshotOut]:
    """List the snapshots of all volumes, newest first."""
    request = query.page_of("snapshots", project_id)
    page = await services.snapshots.list_snapshots(query.filters(query.volume_id), request, project_id=project_id)
    return paginated_response(page, SnapshotOut.model_validate)


@router.get(
    "/snapshots/{snapshot_id}",
    summary="Get a snapshot",
    response_model=SnapshotOut,
    responses=documented_get("snapshot") | errors(SnapshotNotFound),
)
async def get_snapshot(
    snapshot_id: UUID, services: ServicesDep, project_id: ProjectDep, not_modified: NotModifiedDep
) -> SnapshotOut | Response:
    """Return a snapshot."""
    snapshot = await services.snapshots.get(snapshot_id, project_id=project_id)
    return not_modified(row_tag(snapshot)) or SnapshotOut.model_validate(snapshot)


@router.post(
    "/snapshots/{snapshot_id}/restore", status_code=202, summary="Restore a volume", responses=accepts(*RESTORE_ERRORS)
)
async def restore_snapshot(
    snapshot_id: UUID, services: ServicesDep, origin: OriginDep, accepted: AcceptedDep
) -> JobOut:
    """Restore the volume's data from a snapshot. It keeps its present size; bytes past the snapshot are zeros."""
    return await accepted(await services.snapshots.request_restore(snapshot_id, origin=origin))


@router.delete(
    "/snapshots/{snapshot_id}", status_code=202, summary="Delete a snapshot", responses=accepts(*DELETE_ERRORS)
)
async def delete_snapshot(snapshot_id: UUID, services: ServicesDep, origin: OriginDep, accepted: AcceptedDep) -> JobOut:
    """Delete a snapshot. Volumes that were created from it are not affected."""
    return await accepted(await services.snapshots.request_delete(snapshot_id, origin=origin))
