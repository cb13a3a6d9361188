"""Routes of volumes."""

from collections.abc import Callable, Sequence
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Query, Response
from starlette.convertors import StringConvertor, register_url_convertor

from api.acceptance import AcceptedDep, OriginDep
from api.dependencies import ActorDep, ProjectDep, ServicesDep
from api.etag import IfMatchDep, NotModifiedDep, row_tag
from api.openapi import BODY, accepts, documented_get, errors
from api.problems import GROWTH_REQUIRED
from api.schemas.jobs import JobOut
from api.schemas.pagination import Paginated, paginated_response
from api.schemas.volumes import GrowthIn, HistoryOut, VolumeIn, VolumeOut, VolumePatch, VolumeQuery
from domain.errors import (
    BackendOvercommitted,
    BadCursor,
    NameTaken,
    PreconditionFailed,
    QuotaExceeded,
    ShrinkRefused,
    SizeLimitExceeded,
    SnapshotBusy,
    SnapshotNotFound,
    SnapshotUnusable,
    UnknownBackend,
    VolumeAttached,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
    VolumeUnusable,
)
from domain.jobs.acceptance import RequestOrigin
from domain.jobs.model import Job
from domain.operations import VolumeState
from domain.services import Services
from domain.volumes.model import Volume

#: Errors of each operation on a volume, in every version of the API.
CREATE_ERRORS: Final = (
    *(*BODY, NameTaken, UnknownBackend, BackendOvercommitted, QuotaExceeded),
    *(SnapshotNotFound, SnapshotBusy, SnapshotUnusable),
)
EXPAND_ERRORS: Final = (
    *(*BODY, VolumeNotFound, VolumeBusy, VolumeUnusable),
    *(GROWTH_REQUIRED, ShrinkRefused, SizeLimitExceeded, BackendOvercommitted, QuotaExceeded),
)
DELETE_ERRORS: Final = (VolumeNotFound, VolumeBusy, VolumeAttached, VolumeHasSnapshots, QuotaExceeded)


class _VolumeId(StringConvertor):
    """Any segment except those that are routes of their own, for every method: `/volumes/expand`, `/volumes/snapshots`.

    A malformed id must reach the route, which rejects it with 422.
    """

    regex = "(?!(?:expand|snapshots)(?:/|$))[^/]+"


register_url_convertor("volume", _VolumeId())
VOLUME: Final = "/{volume_id:volume}"

router = APIRouter(prefix="/volumes", tags=["volumes"])


@router.post("", status_code=202, summary="Create a volume", responses=accepts(*CREATE_ERRORS))
async def create_volume(body: VolumeIn, services: ServicesDep, origin: OriginDep, accepted: AcceptedDep) -> JobOut:
    """Create a volume, empty or from a snapshot. It is listed at once, and usable when the job has succeeded."""
    return await accepted(await request_volume(services, body, origin))


@router.get("", summary="List volumes", responses=errors(BadCursor))
async def list_volumes(
    query: Annotated[VolumeQuery, Query()], services: ServicesDep, project_id: ProjectDep
) -> Paginated[VolumeOut]:
    """List volumes, newest first."""
    page = await services.volumes.list_volumes(
        query.filters(), query.page_of("volumes", project_id), project_id=project_id
    )
    return paginated_response(page, await volume_renderer(services, page.items, project_id))


@router.get(
    VOLUME,
    summary="Get a volume",
    response_model=VolumeOut,
    responses=documented_get("volume") | errors(VolumeNotFound),
)
async def get_volume(
    volume_id: UUID, services: ServicesDep, project_id: ProjectDep, not_modified: NotModifiedDep
) -> VolumeOut | Response:
    """Return a volume."""
    volume = await services.volumes.get(volume_id, project_id=project_id)
    return not_modified(row_tag(volume)) or await render_volume(services, volume)


@router.patch(VOLUME, summary="Update a volume", responses=errors(*BODY, VolumeNotFound, NameTaken, PreconditionFailed))
async def update_volume(
    volume_id: UUID, patch: VolumePatch, services: ServicesDep, actor: ActorDep, if_match: IfMatchDep
) -> VolumeOut:
    """Change the members that are given. Needs no job, and is possible while a job holds the volume."""
    volume = await services.volumes.change(
        volume_id, patch.changes(), check=lambda row: if_match(row_tag(row)), actor=actor
    )
    return await render_volume(services, volume)


@router.post(f"{VOLUME}/expand", status_code=202, summary="Expand a volume", responses=accepts(*EXPAND_ERRORS))
async def expand_volume(
    volume_id: UUID, body: GrowthIn, services: ServicesDep, origin: OriginDep, accepted: AcceptedDep
) -> JobOut:
    """Expand a volume. A volume has one operation at a time: if it is busy, the error has the id of its job."""
    return await accepted(await services.volumes.request_expand(volume_id, body.growth(), origin=origin))


@router.get(f"{VOLUME}/history", summary="Get the history of a volume", responses=errors(VolumeNotFound))
async def get_history(volume_id: UUID, services: ServicesDep, project_id: ProjectDep) -> HistoryOut:
    """Return what the volume was like in each hour in which it has changed, oldest first, and what it is like now."""
    volume = await services.volumes.get(volume_id, project_id=project_id)
    return HistoryOut.of(volume, await services.volume_history.samples_of(volume_id))


@router.delete(VOLUME, status_code=202, summary="Delete a volume", responses=accepts(*DELETE_ERRORS))
async def delete_volume(volume_id: UUID, services: ServicesDep, origin: OriginDep, accepted: AcceptedDep) -> JobOut:
    """Delete a volume and its data."""
    return await accepted(await services.volumes.request_delete(volume_id, origin=origin))


async def request_volume(services: Services, body: VolumeIn, origin: RequestOrigin) -> Job:
    """Request a new volume, either empty or from a snapshot."""
    if body.from_snapshot is not None:
        return await services.snapshots.request_clone(body.from_snapshot, body.new_volume(), origin=origin)
    return await services.volumes.request_create(body.new_volume(), origin=origin)


async def render_volume(services: Services, volume: Volume) -> VolumeOut:
    """Render a volume with the path of its bytes, and why it is in the state ``error``."""
    return (await volume_renderer(services, [volume], volume.project_id))(volume)


async def volume_renderer(
    services: Services, volumes: Sequence[Volume], project_id: UUID
) -> Callable[[Volume], VolumeOut]:
    """Return what renders each of these volumes of a project."""
    ids = [volume.id for volume in volumes if volume.state is VolumeState.ERROR]
    failed = await services.jobs.last_failures(ids, project_id=project_id)
    return lambda volume: VolumeOut.of(volume, services.volumes.path(volume), failed.get(volume.id))
