"""Volumes in the synchronous dialect: the response is the volume after the operation."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.acceptance import OriginDep
from api.dependencies import ProjectDep, ServicesDep
from api.openapi import BODY, errors
from api.problems import GROWTH_REQUIRED
from api.schemas.bulk import BulkExpandFields, RequireGrowthBody
from api.schemas.jobs import JobOut
from api.schemas.pagination import Paginated, paginated_response
from api.schemas.volumes import GrowthIn, VolumeIn, VolumeOut, VolumeQuery
from api.v0.wait import WaitForJobDep, waits
from api.v1.bulk import request_bulk
from api.v1.volumes import (
    CREATE_ERRORS,
    DELETE_ERRORS,
    EXPAND_ERRORS,
    VOLUME,
    render_volume,
    request_volume,
    volume_renderer,
)
from domain.errors import BadCursor, QuotaExceeded, UnknownBackend, VolumeNotFound
from domain.jobs.model import Job
from domain.services import Services

router = APIRouter(prefix="/volumes", tags=["v0"])


@router.post(
    "", status_code=201, summary="Create a volume, and wait for it", responses=waits(*CREATE_ERRORS, VolumeNotFound)
)
async def create_volume(
    body: VolumeIn, services: ServicesDep, origin: OriginDep, wait_for_job: WaitForJobDep
) -> VolumeOut:
    """Create a volume, empty or from a snapshot, and return it when it is available."""
    return await volume_of(services, await wait_for_job(request_volume(services, body, origin)))


@router.get("", summary="List volumes", responses=errors(BadCursor))
async def list_volumes(
    query: Annotated[VolumeQuery, Query()], services: ServicesDep, project_id: ProjectDep
) -> Paginated[VolumeOut]:
    """List volumes, newest first."""
    page = await services.volumes.list_volumes(
        query.filters(), query.page_of("volumes", project_id), project_id=project_id
    )
    return paginated_response(page, await volume_renderer(services, page.items, project_id))


@router.get(VOLUME, summary="Get a volume", responses=errors(VolumeNotFound))
async def get_volume(volume_id: UUID, services: ServicesDep, project_id: ProjectDep) -> VolumeOut:
    """Return a volume."""
    return await render_volume(services, await services.volumes.get(volume_id, project_id=project_id))


@router.post(
    "/expand",
    summary="Expand many volumes, and wait for it",
    responses=waits(*BODY, GROWTH_REQUIRED, UnknownBackend, QuotaExceeded),
    dependencies=[RequireGrowthBody],
)
async def expand_volumes(
    body: BulkExpandFields, services: ServicesDep, origin: OriginDep, wait_for_job: WaitForJobDep
) -> JobOut:
    """Expand every selected volume, and return the job when it has ended."""
    body.selection().require_backend(services.directory)
    return JobOut.from_row(await wait_for_job(request_bulk(services, body.expansion(), origin)))


@router.post(f"{VOLUME}/expand", summary="Expand a volume, and wait for it", responses=waits(*EXPAND_ERRORS))
async def expand_volume(
    volume_id: UUID, body: GrowthIn, services: ServicesDep, origin: OriginDep, wait_for_job: WaitForJobDep
) -> VolumeOut:
    """Expand a volume, and return it when that is done."""
    job = await wait_for_job(services.volumes.request_expand(volume_id, body.growth(), origin=origin))
    return await volume_of(services, job)


@router.delete(VOLUME, status_code=204, summary="Delete a volume, and wait for it", responses=waits(*DELETE_ERRORS))
async def delete_volume(volume_id: UUID, services: ServicesDep, origin: OriginDep, wait_for_job: WaitForJobDep) -> None:
    """Delete a volume and its data, and respond when it is gone."""
    await wait_for_job(services.volumes.request_delete(volume_id, origin=origin))


async def volume_of(services: Services, job: Job) -> VolumeOut:
    """Return the volume of a job that has succeeded."""
    volume = await services.volumes.get(UUID(str(job.volume_id)), project_id=job.project_id)
    return await render_volume(services, volume)
