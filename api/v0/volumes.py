"""Volumes in the synchronous dialect: the answer is the volume as it has become."""

from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError

from api.dependencies import Asker, Expansion, JsonBody, NoQuery, Snapshots, Volumes
from api.openapi import BODY, refusals
from api.pagination import Paginated, paginated_response
from api.paths import VOLUME
from api.problems import GROWTH_REQUIRED
from api.v0.finishing import Finished, finishes
from api.v1.bulk import request_bulk
from api.v1.growth import GrowthIn
from api.v1.requests import VolumeIn, VolumeQuery
from api.v1.schemas import JobOut, VolumeOut
from api.v1.volumes import NEW_VOLUME_REFUSALS, request_volume
from domain.errors import (
    BadCursor,
    ShrinkRefused,
    SizeLimitExceeded,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
    VolumeUnusable,
)
from domain.expansion.policy import BulkExpansion, GrowthPolicy
from domain.jobs.model import Job
from domain.volumes.service import VolumeService

#: By how many percent the whole fleet grows when nothing is said.
DEFAULT_GROWTH: Final = 10

router = APIRouter(prefix="/volumes", tags=["v0"])


async def _no_body(request: Request) -> None:
    """Refuse a body where none is read: whoever sends one believes that it says how much."""
    if (await request.body()).strip() not in (b"", b"{}"):
        message = "this route takes no body; /api/v1/volumes/expand does"
        raise RequestValidationError([{"type": "extra_forbidden", "loc": ("body",), "msg": message}])


@router.post(
    "",
    status_code=201,
    operation_id="create_volume_v0",
    summary="Create a volume, and wait for it",
    responses=finishes(*BODY, *NEW_VOLUME_REFUSALS, VolumeNotFound),
    dependencies=[NoQuery, JsonBody],
)
async def create_volume(
    wanted: VolumeIn, volumes: Volumes, snapshots: Snapshots, origin: Asker, finished: Finished
) -> VolumeOut:
    """Create a volume, empty or from a snapshot. The answer is the volume when it is there."""
    return await _shown(volumes, await finished(request_volume(wanted, volumes, snapshots, origin)))


@router.get("", operation_id="list_volumes_v0", summary="List volumes", responses=refusals(BadCursor))
async def list_volumes(query: Annotated[VolumeQuery, Query()], volumes: Volumes) -> Paginated[VolumeOut]:
    """List volumes, newest first."""
    page = await volumes.list_volumes(query.wanted(), query.page_of("volumes"))
    return paginated_response(page, lambda volume: VolumeOut.of(volume, volumes.path(volume)))


@router.get(
    VOLUME,
    operation_id="get_volume_v0",
    summary="Look at a volume",
    responses=refusals(VolumeNotFound),
    dependencies=[NoQuery],
)
async def get_volume(volume_id: UUID, volumes: Volumes) -> VolumeOut:
    """Show a volume."""
    volume = await volumes.get(volume_id)
    return VolumeOut.of(volume, volumes.path(volume))


@router.post(
    "/expand",
    operation_id="expand_volumes_v0",
    summary="Grow every volume, and wait for it",
    responses=finishes(),
    dependencies=[NoQuery, Depends(_no_body)],
)
async def expand_volumes(expansion: Expansion, origin: Asker, finished: Finished) -> JobOut:
    """Grow every volume by 10 percent. Takes no body; the answer is the job when all volumes have been visited."""
    wanted = BulkExpansion(GrowthPolicy(percent=DEFAULT_GROWTH))
    return JobOut.of(await finished(request_bulk(wanted, expansion, origin)))


@router.post(
    f"{VOLUME}/expand",
    operation_id="expand_volume_v0",
    summary="Grow a volume, and wait for it",
    responses=finishes(
        *BODY, VolumeNotFound, VolumeBusy, VolumeUnusable, GROWTH_REQUIRED, ShrinkRefused, SizeLimitExceeded
    ),
    dependencies=[NoQuery, JsonBody],
)
async def expand_volume(
    volume_id: UUID, wish: GrowthIn, volumes: Volumes, origin: Asker, finished: Finished
) -> VolumeOut:
    """Grow a volume. The answer is the volume when it has grown."""
    return await _shown(volumes, await finished(volumes.request_expand(volume_id, wish.growth(), origin=origin)))


@router.delete(
    VOLUME,
    status_code=204,
    operation_id="delete_volume_v0",
    summary="Delete a volume, and wait for it",
    responses=finishes(VolumeNotFound, VolumeBusy, VolumeHasSnapshots),
    dependencies=[NoQuery],
)
async def delete_volume(volume_id: UUID, volumes: Volumes, origin: Asker, finished: Finished) -> None:
    """Delete a volume and everything on it. The answer comes when it is gone."""
    await finished(volumes.request_delete(volume_id, origin=origin))


async def _shown(volumes: VolumeService, job: Job) -> VolumeOut:
    volume = await volumes.get(UUID(str(job.volume_id)))
    return VolumeOut.of(volume, volumes.path(volume))
