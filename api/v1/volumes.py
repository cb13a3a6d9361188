"""Volumes over HTTP."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.answers import Answer
from api.dependencies import Asked, JsonBody, NoQuery, Volumes
from api.openapi import ACCEPTED, BODY, refusals
from api.pagination import Paginated, paginated_response
from api.problems import GROWTH_REQUIRED
from api.v1.requests import GrowthIn, VolumeIn, VolumePatch, VolumeQuery
from api.v1.schemas import JobOut, VolumeOut
from domain.errors import (
    BadCursor,
    NameTaken,
    ShrinkRefused,
    SizeLimitExceeded,
    UnknownBackend,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
    VolumeUnusable,
)

router = APIRouter(prefix="/volumes", tags=["volumes"])


@router.post(
    "",
    status_code=202,
    operation_id="create_volume",
    summary="Create a volume",
    responses=ACCEPTED | refusals(*BODY, NameTaken, UnknownBackend),
    dependencies=[NoQuery, JsonBody],
)
async def create_volume(wanted: VolumeIn, volumes: Volumes, origin: Asked, answer: Answer) -> JobOut:
    """Accept a new volume. It is listed at once, and usable when the job has succeeded."""
    return await answer(await volumes.request_create(wanted.new_volume(), origin=origin))


@router.get("", operation_id="list_volumes", summary="List volumes", responses=refusals(BadCursor))
async def list_volumes(query: Annotated[VolumeQuery, Query()], volumes: Volumes) -> Paginated[VolumeOut]:
    """List volumes, newest first."""
    page = await volumes.list_volumes(query.wanted(), query.page_of("volumes"))
    return paginated_response(page, lambda volume: VolumeOut.of(volume, volumes.path(volume)))


@router.get(
    "/{volume_id}",
    operation_id="get_volume",
    summary="Look at a volume",
    responses=refusals(VolumeNotFound),
    dependencies=[NoQuery],
)
async def get_volume(volume_id: UUID, volumes: Volumes) -> VolumeOut:
    """Show a volume."""
    volume = await volumes.get(volume_id)
    return VolumeOut.of(volume, volumes.path(volume))


@router.patch(
    "/{volume_id}",
    operation_id="update_volume",
    summary="Rename or relabel a volume",
    responses=refusals(*BODY, VolumeNotFound, NameTaken),
    dependencies=[NoQuery, JsonBody],
)
async def update_volume(volume_id: UUID, patch: VolumePatch, volumes: Volumes) -> VolumeOut:
    """Change what needs no storage work: name, labels, autogrow. Possible while a job has the volume."""
    volume = await volumes.change(volume_id, patch.change())
    return VolumeOut.of(volume, volumes.path(volume))


@router.post(
    "/{volume_id}/expand",
    status_code=202,
    operation_id="expand_volume",
    summary="Grow a volume",
    responses=ACCEPTED
    | refusals(*BODY, VolumeNotFound, VolumeBusy, VolumeUnusable, GROWTH_REQUIRED, ShrinkRefused, SizeLimitExceeded),
    dependencies=[NoQuery, JsonBody],
)
async def expand_volume(volume_id: UUID, wish: GrowthIn, volumes: Volumes, origin: Asked, answer: Answer) -> JobOut:
    """Accept a larger size. One operation at a time: a busy volume is refused, with the id of its job."""
    return await answer(await volumes.request_expand(volume_id, wish.growth(), origin=origin))


@router.delete(
    "/{volume_id}",
    status_code=202,
    operation_id="delete_volume",
    summary="Delete a volume",
    responses=ACCEPTED | refusals(VolumeNotFound, VolumeBusy, VolumeHasSnapshots),
    dependencies=[NoQuery],
)
async def delete_volume(volume_id: UUID, volumes: Volumes, origin: Asked, answer: Answer) -> JobOut:
    """Accept the end of a volume and of everything on it."""
    return await answer(await volumes.request_delete(volume_id, origin=origin))
