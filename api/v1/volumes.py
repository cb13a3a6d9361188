"""Volumes over HTTP."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.answers import Answer
from api.conditional import Seen, row_tag
from api.dependencies import Asker, JsonBody, NoQuery, Snapshots, Volumes
from api.openapi import BODY, accepts, refusals, shown
from api.pagination import Paginated, paginated_response
from api.paths import VOLUME
from api.problems import GROWTH_REQUIRED
from api.v1.growth import GrowthIn
from api.v1.requests import VolumeIn, VolumePatch, VolumeQuery
from api.v1.schemas import JobOut, VolumeOut
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
from domain.jobs.acceptance import Origin
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
    wanted: VolumeIn, volumes: Volumes, snapshots: Snapshots, origin: Asker, answer: Answer
) -> JobOut:
    """Accept a new volume, empty or from a snapshot. It is listed at once, and usable when the job has succeeded."""
    return await answer(await request_volume(wanted, volumes, snapshots, origin))


@router.get("", operation_id="list_volumes", summary="List volumes", responses=refusals(BadCursor))
async def list_volumes(query: Annotated[VolumeQuery, Query()], volumes: Volumes) -> Paginated[VolumeOut]:
    """List volumes, newest first."""
    page = await volumes.list_volumes(query.wanted(), query.page_of("volumes"))
    return paginated_response(page, lambda volume: VolumeOut.of(volume, volumes.path(volume)))


@router.get(
    VOLUME,
    operation_id="get_volume",
    summary="Look at a volume",
    response_model=VolumeOut,
    responses=shown("volume") | refusals(VolumeNotFound),
    dependencies=[NoQuery],
)
async def get_volume(volume_id: UUID, volumes: Volumes, seen: Seen) -> VolumeOut | Response:
    """Show a volume."""
    volume = await volumes.get(volume_id)
    return seen.unchanged(row_tag(volume)) or VolumeOut.of(volume, volumes.path(volume))


@router.patch(
    VOLUME,
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
    f"{VOLUME}/expand",
    status_code=202,
    operation_id="expand_volume",
    summary="Grow a volume",
    responses=accepts(
        *BODY, VolumeNotFound, VolumeBusy, VolumeUnusable, GROWTH_REQUIRED, ShrinkRefused, SizeLimitExceeded
    ),
    dependencies=[NoQuery, JsonBody],
)
async def expand_volume(volume_id: UUID, wish: GrowthIn, volumes: Volumes, origin: Asker, answer: Answer) -> JobOut:
    """Accept a larger size. One operation at a time: a busy volume is refused, with the id of its job."""
    return await answer(await volumes.request_expand(volume_id, wish.growth(), origin=origin))


@router.delete(
    VOLUME,
    status_code=202,
    operation_id="delete_volume",
    summary="Delete a volume",
    responses=accepts(VolumeNotFound, VolumeBusy, VolumeHasSnapshots),
    dependencies=[NoQuery],
)
async def delete_volume(volume_id: UUID, volumes: Volumes, origin: Asker, answer: Answer) -> JobOut:
    """Accept the end of a volume and of everything on it."""
    return await answer(await volumes.request_delete(volume_id, origin=origin))


async def request_volume(wanted: VolumeIn, volumes: VolumeService, snapshots: SnapshotService, origin: Origin) -> Job:
    """Ask for a new volume, which begins empty or with a snapshot's bytes."""
    if wanted.from_snapshot is not None:
        return await snapshots.request_clone(wanted.from_snapshot, wanted.new_volume(), origin=origin)
    return await volumes.request_create(wanted.new_volume(), origin=origin)
