"""Volumes over HTTP."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.accepted import AcceptedDep
from api.converters import VOLUME
from api.dependencies import JsonBody, NoQuery, OriginDep, SnapshotsDep, VolumesDep
from api.etag import IfNoneMatchDep, row_tag
from api.openapi import BODY, accepts, documented_get, errors
from api.problems import GROWTH_REQUIRED
from api.schemas.growth import GrowthIn
from api.schemas.pagination import Paginated, paginated_response
from api.schemas.requests import VolumeIn, VolumePatch, VolumeQuery
from api.schemas.responses import JobOut, VolumeOut
from domain.errors import (
    BadCursor,
    NameTaken,
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
from domain.jobs.idempotency import RequestOrigin
from domain.jobs.model import Job
from domain.snapshots.service import SnapshotService
from domain.volumes.service import VolumeService

#: Why a new volume may be refused.
NEW_VOLUME_REFUSALS = (NameTaken, UnknownBackend, SnapshotNotFound, SnapshotBusy, SnapshotUnusable)

router = APIRouter(prefix="/volumes", tags=["volumes"])


@router.post(
    "",
    status_code=202,
    operation_id="create_volume",
    summary="Create a volume",
    responses=accepts(*BODY, *NEW_VOLUME_REFUSALS),
    dependencies=[NoQuery, JsonBody],
)
async def create_volume(
    body: VolumeIn, volumes: VolumesDep, snapshots: SnapshotsDep, origin: OriginDep, answer: AcceptedDep
) -> JobOut:
    """Accept a new volume, empty or from a snapshot. It is listed at once, and usable when the job has succeeded."""
    return await answer(await request_volume(body, volumes, snapshots, origin))


@router.get("", operation_id="list_volumes", summary="List volumes", responses=errors(BadCursor))
async def list_volumes(query: Annotated[VolumeQuery, Query()], volumes: VolumesDep) -> Paginated[VolumeOut]:
    """List volumes, newest first."""
    page = await volumes.list_volumes(query.filters(), query.page_of("volumes"))
    return paginated_response(page, lambda volume: VolumeOut.from_row(volume, volumes.path(volume)))


@router.get(
    VOLUME,
    operation_id="get_volume",
    summary="Look at a volume",
    response_model=VolumeOut,
    responses=documented_get("volume") | errors(VolumeNotFound),
    dependencies=[NoQuery],
)
async def get_volume(volume_id: UUID, volumes: VolumesDep, seen: IfNoneMatchDep) -> VolumeOut | Response:
    """Show a volume."""
    volume = await volumes.get(volume_id)
    return seen.unchanged(row_tag(volume)) or VolumeOut.from_row(volume, volumes.path(volume))


@router.patch(
    VOLUME,
    operation_id="update_volume",
    summary="Rename or relabel a volume",
    responses=errors(*BODY, VolumeNotFound, NameTaken),
    dependencies=[NoQuery, JsonBody],
)
async def update_volume(volume_id: UUID, patch: VolumePatch, volumes: VolumesDep) -> VolumeOut:
    """Change what needs no storage work: name, labels, autogrow. Possible while a job has the volume."""
    volume = await volumes.change(volume_id, patch.change())
    return VolumeOut.from_row(volume, volumes.path(volume))


@router.post(
    f"{VOLUME}/expand",
    status_code=202,
    operation_id="expand_volume",
    summary="Grow a volume",
    responses=accepts(
        *BODY, VolumeNotFound, VolumeBusy, VolumeUnusable, GROWTH_REQUIRED, ShrinkRefused, SizeLimitExceeded
    ),
    dependencies=[NoQuery, JsonBody],
)
async def expand_volume(
    volume_id: UUID, body: GrowthIn, volumes: VolumesDep, origin: OriginDep, answer: AcceptedDep
) -> JobOut:
    """Accept a larger size. One operation at a time: a busy volume is refused, with the id of its job."""
    return await answer(await volumes.request_expand(volume_id, body.growth(), origin=origin))


@router.delete(
    VOLUME,
    status_code=202,
    operation_id="delete_volume",
    summary="Delete a volume",
    responses=accepts(VolumeNotFound, VolumeBusy, VolumeHasSnapshots),
    dependencies=[NoQuery],
)
async def delete_volume(volume_id: UUID, volumes: VolumesDep, origin: OriginDep, answer: AcceptedDep) -> JobOut:
    """Accept the end of a volume and of everything on it."""
    return await answer(await volumes.request_delete(volume_id, origin=origin))


async def request_volume(
    body: VolumeIn, volumes: VolumeService, snapshots: SnapshotService, origin: RequestOrigin
) -> Job:
    """Ask for a new volume, which begins empty or with a snapshot's bytes."""
    if body.from_snapshot is not None:
        return await snapshots.request_clone(body.from_snapshot, body.new_volume(), origin=origin)
    return await volumes.request_create(body.new_volume(), origin=origin)
