"""Snapshots in the synchronous dialect."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.acceptance import OriginDep
from api.dependencies import ProjectDep, ServicesDep
from api.openapi import errors
from api.schemas.pagination import Paginated, paginated_response
from api.schemas.snapshots import SnapshotIn, SnapshotOut, SnapshotQuery
from api.schemas.volumes import VolumeOut
from api.v0.volumes import volume_of
from api.v0.wait import WaitForJobDep, waits
from api.v1.snapshots import DELETE_ERRORS, RESTORE_ERRORS, TAKE_ERRORS
from domain.errors import BadCursor, SnapshotNotFound

router = APIRouter(tags=["v0"])


@router.post(
    "/volumes/{volume_id}/snapshots",
    status_code=201,
    summary="Take a snapshot, and wait for it",
    responses=waits(*TAKE_ERRORS, SnapshotNotFound),
)
async def take_snapshot(
    volume_id: UUID, body: SnapshotIn, services: ServicesDep, origin: OriginDep, wait_for_job: WaitForJobDep
) -> SnapshotOut:
    """Take a snapshot of a volume, and return it when it is ready."""
    job = await wait_for_job(services.snapshots.request_take(volume_id, body.name, origin=origin))
    snapshot_id = UUID(str(job.snapshot_id))
    return SnapshotOut.model_validate(await services.snapshots.get(snapshot_id, project_id=job.project_id))


@router.get("/snapshots", summary="List snapshots", responses=errors(BadCursor))
async def list_snapshots(
    query: Annotated[SnapshotQuery, Query()], services: ServicesDep, project_id: ProjectDep
) -> Paginated[SnapshotOut]:
    """List the snapshots of all volumes, newest first."""
    request = query.page_of("snapshots", project_id)
    page = await services.snapshots.list_snapshots(query.filters(query.volume_id), request, project_id=project_id)
    return paginated_response(page, SnapshotOut.model_validate)


@router.get("/snapshots/{snapshot_id}", summary="Get a snapshot", responses=errors(SnapshotNotFound))
async def get_snapshot(snapshot_id: UUID, services: ServicesDep, project_id: ProjectDep) -> SnapshotOut:
    """Return a snapshot."""
    return SnapshotOut.model_validate(await services.snapshots.get(snapshot_id, project_id=project_id))


@router.post(
    "/snapshots/{snapshot_id}/restore", summary="Restore a volume, and wait for it", responses=waits(*RESTORE_ERRORS)
)
async def restore_snapshot(
    snapshot_id: UUID, services: ServicesDep, origin: OriginDep, wait_for_job: WaitForJobDep
) -> VolumeOut:
    """Restore the volume's data from a snapshot, and return the volume when that is done."""
    return await volume_of(services, await wait_for_job(services.snapshots.request_restore(snapshot_id, origin=origin)))


@router.delete(
    "/snapshots/{snapshot_id}",
    status_code=204,
    summary="Delete a snapshot, and wait for it",
    responses=waits(*DELETE_ERRORS),
)
async def delete_snapshot(
    snapshot_id: UUID, services: ServicesDep, origin: OriginDep, wait_for_job: WaitForJobDep
) -> None:
    """Delete a snapshot, and respond when it is gone."""
    await wait_for_job(services.snapshots.request_delete(snapshot_id, origin=origin))
