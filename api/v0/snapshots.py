"""Snapshots in the synchronous dialect."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.dependencies import JsonBody, NoQuery, OriginDep, SnapshotsDep, VolumesDep
from api.openapi import BODY, errors
from api.schemas.pagination import Paginated, paginated_response
from api.schemas.snapshots import SnapshotIn, SnapshotOut, SnapshotQuery
from api.schemas.volumes import VolumeOut
from api.v0.wait import WaitForJobDep, waits
from domain.errors import (
    BadCursor,
    NameTaken,
    SnapshotBusy,
    SnapshotNotFound,
    SnapshotUnusable,
    VolumeBusy,
    VolumeNotFound,
    VolumeUnusable,
)

router = APIRouter(tags=["v0"])


@router.post(
    "/volumes/{volume_id}/snapshots",
    status_code=201,
    operation_id="take_snapshot_v0",
    summary="Take a snapshot, and wait for it",
    responses=waits(*BODY, VolumeNotFound, VolumeBusy, VolumeUnusable, NameTaken, SnapshotNotFound),
    dependencies=[NoQuery, JsonBody],
)
async def take_snapshot(
    volume_id: UUID, body: SnapshotIn, snapshots: SnapshotsDep, origin: OriginDep, wait_for_job: WaitForJobDep
) -> SnapshotOut:
    """Take a snapshot of a volume, and return it when it is ready."""
    job = await wait_for_job(snapshots.request_take(volume_id, body.name, origin=origin))
    return SnapshotOut.model_validate(await snapshots.get(UUID(str(job.snapshot_id))))


@router.get("/snapshots", operation_id="list_snapshots_v0", summary="List snapshots", responses=errors(BadCursor))
async def list_snapshots(query: Annotated[SnapshotQuery, Query()], snapshots: SnapshotsDep) -> Paginated[SnapshotOut]:
    """List the snapshots of all volumes, newest first."""
    page = await snapshots.list_snapshots(query.filters(query.volume_id), query.page_of("snapshots"))
    return paginated_response(page, SnapshotOut.model_validate)


@router.get(
    "/snapshots/{snapshot_id}",
    operation_id="get_snapshot_v0",
    summary="Get a snapshot",
    responses=errors(SnapshotNotFound),
    dependencies=[NoQuery],
)
async def get_snapshot(snapshot_id: UUID, snapshots: SnapshotsDep) -> SnapshotOut:
    """Return a snapshot."""
    return SnapshotOut.model_validate(await snapshots.get(snapshot_id))


@router.post(
    "/snapshots/{snapshot_id}/restore",
    operation_id="restore_snapshot_v0",
    summary="Restore a volume, and wait for it",
    responses=waits(SnapshotNotFound, SnapshotBusy, SnapshotUnusable, VolumeNotFound, VolumeBusy, VolumeUnusable),
    dependencies=[NoQuery],
)
async def restore_snapshot(
    snapshot_id: UUID, snapshots: SnapshotsDep, volumes: VolumesDep, origin: OriginDep, wait_for_job: WaitForJobDep
) -> VolumeOut:
    """Restore the volume's data from a snapshot, and return the volume when that is done."""
    job = await wait_for_job(snapshots.request_restore(snapshot_id, origin=origin))
    volume = await volumes.get(UUID(str(job.volume_id)))
    return VolumeOut.from_row(volume, volumes.path(volume))


@router.delete(
    "/snapshots/{snapshot_id}",
    status_code=204,
    operation_id="delete_snapshot_v0",
    summary="Delete a snapshot, and wait for it",
    responses=waits(SnapshotNotFound, SnapshotBusy),
    dependencies=[NoQuery],
)
async def delete_snapshot(
    snapshot_id: UUID, snapshots: SnapshotsDep, origin: OriginDep, wait_for_job: WaitForJobDep
) -> None:
    """Delete a snapshot, and respond when it is gone."""
    await wait_for_job(snapshots.request_delete(snapshot_id, origin=origin))
