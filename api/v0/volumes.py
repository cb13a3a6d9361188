"""Volumes in the synchronous dialect: the response is the volume after the operation."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.converters import VOLUME
from api.dependencies import BulkDep, JsonBody, NoQuery, OriginDep, ServicesDep, SnapshotsDep, VolumesDep
from api.openapi import BODY, errors
from api.problems import GROWTH_REQUIRED
from api.schemas.bulk import BulkExpandFields, GrowthBody
from api.schemas.jobs import JobOut
from api.schemas.pagination import Paginated, paginated_response
from api.schemas.volumes import GrowthIn, VolumeIn, VolumeOut, VolumeQuery
from api.v0.wait import WaitForJobDep, waits
from api.v1.bulk import request_bulk
from api.v1.volumes import NEW_VOLUME_ERRORS, request_volume
from domain.errors import (
    BadCursor,
    ShrinkRefused,
    SizeLimitExceeded,
    UnknownBackend,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
    VolumeUnusable,
)
from domain.jobs.model import Job
from domain.volumes.service import VolumeService

router = APIRouter(prefix="/volumes", tags=["v0"])


@router.post(
    "",
    status_code=201,
    operation_id="create_volume_v0",
    summary="Create a volume, and wait for it",
    responses=waits(*BODY, *NEW_VOLUME_ERRORS, VolumeNotFound),
    dependencies=[NoQuery, JsonBody],
)
async def create_volume(
    body: VolumeIn, volumes: VolumesDep, snapshots: SnapshotsDep, origin: OriginDep, wait_for_job: WaitForJobDep
) -> VolumeOut:
    """Create a volume, empty or from a snapshot, and return it when it is available."""
    return await _render(volumes, await wait_for_job(request_volume(body, volumes, snapshots, origin)))


@router.get("", operation_id="list_volumes_v0", summary="List volumes", responses=errors(BadCursor))
async def list_volumes(query: Annotated[VolumeQuery, Query()], volumes: VolumesDep) -> Paginated[VolumeOut]:
    """List volumes, newest first."""
    page = await volumes.list_volumes(query.filters(), query.page_of("volumes"))
    return paginated_response(page, lambda volume: VolumeOut.from_row(volume, volumes.path(volume)))


@router.get(
    VOLUME,
    operation_id="get_volume_v0",
    summary="Get a volume",
    responses=errors(VolumeNotFound),
    dependencies=[NoQuery],
)
async def get_volume(volume_id: UUID, volumes: VolumesDep) -> VolumeOut:
    """Return a volume."""
    volume = await volumes.get(volume_id)
    return VolumeOut.from_row(volume, volumes.path(volume))


@router.post(
    "/expand",
    operation_id="expand_volumes_v0",
    summary="Expand many volumes, and wait for it",
    responses=waits(*BODY, GROWTH_REQUIRED, UnknownBackend),
    dependencies=[NoQuery, JsonBody, GrowthBody],
)
async def expand_volumes(
    body: BulkExpandFields, services: ServicesDep, bulk: BulkDep, origin: OriginDep, wait_for_job: WaitForJobDep
) -> JobOut:
    """Expand every selected volume, and return the job when it has ended."""
    body.selection().require_backend(services.backends)
    return JobOut.from_row(await wait_for_job(request_bulk(body.expansion(), bulk, origin)))


@router.post(
    f"{VOLUME}/expand",
    operation_id="expand_volume_v0",
    summary="Expand a volume, and wait for it",
    responses=waits(
        *BODY, VolumeNotFound, VolumeBusy, VolumeUnusable, GROWTH_REQUIRED, ShrinkRefused, SizeLimitExceeded
    ),
    dependencies=[NoQuery, JsonBody],
)
async def expand_volume(
    volume_id: UUID, body: GrowthIn, volumes: VolumesDep, origin: OriginDep, wait_for_job: WaitForJobDep
) -> VolumeOut:
    """Expand a volume, and return it when that is done."""
    return await _render(volumes, await wait_for_job(volumes.request_expand(volume_id, body.growth(), origin=origin)))


@router.delete(
    VOLUME,
    status_code=204,
    operation_id="delete_volume_v0",
    summary="Delete a volume, and wait for it",
    responses=waits(VolumeNotFound, VolumeBusy, VolumeHasSnapshots),
    dependencies=[NoQuery],
)
async def delete_volume(volume_id: UUID, volumes: VolumesDep, origin: OriginDep, wait_for_job: WaitForJobDep) -> None:
    """Delete a volume and its data, and respond when it is gone."""
    await wait_for_job(volumes.request_delete(volume_id, origin=origin))


async def _render(volumes: VolumeService, job: Job) -> VolumeOut:
    volume = await volumes.get(UUID(str(job.volume_id)))
    return VolumeOut.from_row(volume, volumes.path(volume))
