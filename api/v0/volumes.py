"""Volumes in the synchronous dialect: the answer is the volume as it has become."""

from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError

from api.converters import VOLUME
from api.dependencies import BulkExpandDep, JsonBody, NoQuery, OriginDep, SnapshotsDep, VolumesDep
from api.openapi import BODY, errors
from api.problems import GROWTH_REQUIRED
from api.schemas.growth import GrowthIn
from api.schemas.pagination import Paginated, paginated_response
from api.schemas.requests import VolumeIn, VolumeQuery
from api.schemas.responses import JobOut, VolumeOut
from api.v0.wait import FinishedDep, waits
from api.v1.bulk import request_bulk
from api.v1.volumes import NEW_VOLUME_REFUSALS, request_volume
from domain.bulk.expand.policy import BulkExpandRequest, GrowthPolicy
from domain.errors import (
    BadCursor,
    ShrinkRefused,
    SizeLimitExceeded,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
    VolumeUnusable,
)
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
    responses=waits(*BODY, *NEW_VOLUME_REFUSALS, VolumeNotFound),
    dependencies=[NoQuery, JsonBody],
)
async def create_volume(
    body: VolumeIn, volumes: VolumesDep, snapshots: SnapshotsDep, origin: OriginDep, finished: FinishedDep
) -> VolumeOut:
    """Create a volume, empty or from a snapshot. The answer is the volume when it is there."""
    return await _render(volumes, await finished(request_volume(body, volumes, snapshots, origin)))


@router.get("", operation_id="list_volumes_v0", summary="List volumes", responses=errors(BadCursor))
async def list_volumes(query: Annotated[VolumeQuery, Query()], volumes: VolumesDep) -> Paginated[VolumeOut]:
    """List volumes, newest first."""
    page = await volumes.list_volumes(query.filters(), query.page_of("volumes"))
    return paginated_response(page, lambda volume: VolumeOut.from_row(volume, volumes.path(volume)))


@router.get(
    VOLUME,
    operation_id="get_volume_v0",
    summary="Look at a volume",
    responses=errors(VolumeNotFound),
    dependencies=[NoQuery],
)
async def get_volume(volume_id: UUID, volumes: VolumesDep) -> VolumeOut:
    """Show a volume."""
    volume = await volumes.get(volume_id)
    return VolumeOut.from_row(volume, volumes.path(volume))


@router.post(
    "/expand",
    operation_id="expand_volumes_v0",
    summary="Grow every volume, and wait for it",
    responses=waits(),
    dependencies=[NoQuery, Depends(_no_body)],
)
async def expand_volumes(expansion: BulkExpandDep, origin: OriginDep, finished: FinishedDep) -> JobOut:
    """Grow every volume by 10 percent. Takes no body; the answer is the job when all volumes have been visited."""
    wanted = BulkExpandRequest(GrowthPolicy(percent=DEFAULT_GROWTH))
    return JobOut.from_row(await finished(request_bulk(wanted, expansion, origin)))


@router.post(
    f"{VOLUME}/expand",
    operation_id="expand_volume_v0",
    summary="Grow a volume, and wait for it",
    responses=waits(
        *BODY, VolumeNotFound, VolumeBusy, VolumeUnusable, GROWTH_REQUIRED, ShrinkRefused, SizeLimitExceeded
    ),
    dependencies=[NoQuery, JsonBody],
)
async def expand_volume(
    volume_id: UUID, body: GrowthIn, volumes: VolumesDep, origin: OriginDep, finished: FinishedDep
) -> VolumeOut:
    """Grow a volume. The answer is the volume when it has grown."""
    return await _render(volumes, await finished(volumes.request_expand(volume_id, body.growth(), origin=origin)))


@router.delete(
    VOLUME,
    status_code=204,
    operation_id="delete_volume_v0",
    summary="Delete a volume, and wait for it",
    responses=waits(VolumeNotFound, VolumeBusy, VolumeHasSnapshots),
    dependencies=[NoQuery],
)
async def delete_volume(volume_id: UUID, volumes: VolumesDep, origin: OriginDep, finished: FinishedDep) -> None:
    """Delete a volume and everything on it. The answer comes when it is gone."""
    await finished(volumes.request_delete(volume_id, origin=origin))


async def _render(volumes: VolumeService, job: Job) -> VolumeOut:
    volume = await volumes.get(UUID(str(job.volume_id)))
    return VolumeOut.from_row(volume, volumes.path(volume))
