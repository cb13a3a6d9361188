"""Routes of volumes."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.accepted import AcceptedDep
from api.converters import VOLUME
from api.dependencies import JsonBody, NoQuery, OriginDep, SnapshotsDep, VolumesDep
from api.etag import IfMatchDep, IfNoneMatchDep, row_tag
from api.openapi import BODY, accepts, documented_get, errors
from api.problems import GROWTH_REQUIRED
from api.schemas.jobs import JobOut
from api.schemas.pagination import Paginated, paginated_response
from api.schemas.volumes import GrowthIn, VolumeIn, VolumeOut, VolumePatch, VolumeQuery
from domain.errors import (
    BadCursor,
    NameTaken,
    PreconditionFailed,
    ShrinkRefused,
    SizeLimitExceeded,
    SnapshotBusy,
    SnapshotNotFound,
    SnapshotUnusable,
    UnknownBackend,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
    VolumeUnusable,
)
from domain.jobs.acceptance import RequestOrigin
from domain.jobs.model import Job
from domain.snapshots.service import SnapshotService
from domain.volumes.service import VolumeService

#: Errors of a request for a new volume.
NEW_VOLUME_ERRORS = (NameTaken, UnknownBackend, SnapshotNotFound, SnapshotBusy, SnapshotUnusable)

router = APIRouter(prefix="/volumes", tags=["volumes"])


@router.post(
    "",
    status_code=202,
    operation_id="create_volume",
    summary="Create a volume",
    responses=accepts(*BODY, *NEW_VOLUME_ERRORS),
    dependencies=[NoQuery, JsonBody],
)
async def create_volume(
    body: VolumeIn, volumes: VolumesDep, snapshots: SnapshotsDep, origin: OriginDep, accepted: AcceptedDep
) -> JobOut:
    """Create a volume, empty or from a snapshot. It is listed at once, and usable when the job has succeeded."""
    return await accepted(await request_volume(body, volumes, snapshots, origin))


@router.get("", operation_id="list_volumes", summary="List volumes", responses=errors(BadCursor))
async def list_volumes(query: Annotated[VolumeQuery, Query()], volumes: VolumesDep) -> Paginated[VolumeOut]:
    """List volumes, newest first."""
    page = await volumes.list_volumes(query.filters(), query.page_of("volumes"))
    return paginated_response(page, lambda volume: VolumeOut.from_row(volume, volumes.path(volume)))


@router.get(
    VOLUME,
    operation_id="get_volume",
    summary="Get a volume",
    response_model=VolumeOut,
    responses=documented_get("volume") | errors(VolumeNotFound),
    dependencies=[NoQuery],
)
async def get_volume(volume_id: UUID, volumes: VolumesDep, if_none_match: IfNoneMatchDep) -> VolumeOut | Response:
    """Return a volume."""
    volume = await volumes.get(volume_id)
    return if_none_match.not_modified(row_tag(volume)) or VolumeOut.from_row(volume, volumes.path(volume))


@router.patch(
    VOLUME,
    operation_id="update_volume",
    summary="Update a volume",
    responses=errors(*BODY, VolumeNotFound, NameTaken, PreconditionFailed),
    dependencies=[NoQuery, JsonBody],
)
async def update_volume(volume_id: UUID, patch: VolumePatch, volumes: VolumesDep, if_match: IfMatchDep) -> VolumeOut:
    """Change the name, labels or autogrow policy. Needs no job, and is possible while a job holds the volume."""
    volume = await volumes.change(volume_id, patch.changes(), check=if_match.require)
    return VolumeOut.from_row(volume, volumes.path(volume))


@router.post(
    f"{VOLUME}/expand",
    status_code=202,
    operation_id="expand_volume",
    summary="Expand a volume",
    responses=accepts(
        *BODY, VolumeNotFound, VolumeBusy, VolumeUnusable, GROWTH_REQUIRED, ShrinkRefused, SizeLimitExceeded
    ),
    dependencies=[NoQuery, JsonBody],
)
async def expand_volume(
    volume_id: UUID, body: GrowthIn, volumes: VolumesDep, origin: OriginDep, accepted: AcceptedDep
) -> JobOut:
    """Expand a volume. A volume has one operation at a time: if it is busy, the error has the id of its job."""
    return await accepted(await volumes.request_expand(volume_id, body.growth(), origin=origin))


@router.delete(
    VOLUME,
    status_code=202,
    operation_id="delete_volume",
    summary="Delete a volume",
    responses=accepts(VolumeNotFound, VolumeBusy, VolumeHasSnapshots),
    dependencies=[NoQuery],
)
async def delete_volume(volume_id: UUID, volumes: VolumesDep, origin: OriginDep, accepted: AcceptedDep) -> JobOut:
    """Delete a volume and its data."""
    return await accepted(await volumes.request_delete(volume_id, origin=origin))


async def request_volume(
    body: VolumeIn, volumes: VolumeService, snapshots: SnapshotService, origin: RequestOrigin
) -> Job:
    """Request a new volume, either empty or from a snapshot."""
    if body.from_snapshot is not None:
        return await snapshots.request_clone(body.from_snapshot, body.new_volume(), origin=origin)
    return await volumes.request_create(body.new_volume(), origin=origin)
