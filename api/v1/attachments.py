"""Routes of attachments and nodes."""

from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Query

from api.acceptance import AcceptedDep, OriginDep
from api.access import require_role
from api.dependencies import PrincipalDep, ProjectDep, ServicesDep
from api.openapi import BODY, accepts, errors
from api.schemas.attachments import (
    AttachmentIn,
    AttachmentOut,
    AttachmentQuery,
    AttachmentsOfVolumeQuery,
    DetachQuery,
    NodesOut,
)
from api.schemas.jobs import JobOut
from api.schemas.pagination import Paginated, paginated_response
from domain.access.model import Role
from domain.db.pagination import PageRequest
from domain.errors import (
    AttachmentNotFound,
    BadCursor,
    DatabaseUnavailable,
    QuotaExceeded,
    UnknownNode,
    VolumeAttached,
    VolumeBusy,
    VolumeNotFound,
    VolumeUnusable,
)
from domain.services import Services
from domain.volumes.attachments.repository import AttachmentFilter

_ERRORS: Final = (VolumeNotFound, VolumeBusy, VolumeUnusable, QuotaExceeded)

router = APIRouter(tags=["attachments"])


@router.post(
    "/volumes/{volume_id}/attachments",
    status_code=202,
    summary="Attach a volume",
    responses=accepts(*BODY, *_ERRORS, VolumeAttached, UnknownNode),
)
async def attach_volume(
    volume_id: UUID, body: AttachmentIn, services: ServicesDep, origin: OriginDep, accepted: AcceptedDep
) -> JobOut:
    """Give a holder the volume on a node. The result of the job says where it is; a repetition finds it there."""
    return await accepted(await services.attachments.request_attach(volume_id, body.new_attachment(), origin=origin))


@router.delete(
    "/volumes/{volume_id}/attachments/{attachment_id}",
    status_code=202,
    summary="Detach a volume",
    responses=accepts(*_ERRORS, AttachmentNotFound),
)
async def detach_volume(  # noqa: PLR0917 (FastAPI passes them by name)
    volume_id: UUID,
    attachment_id: UUID,
    query: Annotated[DetachQuery, Query()],
    services: ServicesDep,
    principal: PrincipalDep,
    origin: OriginDep,
    accepted: AcceptedDep,
) -> JobOut:
    """Take the volume from a holder. The node unmounts it after its last holder. Only owners may use `force`."""
    if query.force:
        require_role(principal, Role.OWNER)
    job = await services.attachments.request_detach(volume_id, attachment_id, force=query.force, origin=origin)
    return await accepted(job)


@router.get(
    "/volumes/{volume_id}/attachments",
    summary="List a volume's attachments",
    responses=errors(VolumeNotFound, BadCursor),
)
async def list_attachments_of_volume(
    volume_id: UUID, query: Annotated[AttachmentsOfVolumeQuery, Query()], services: ServicesDep, project_id: ProjectDep
) -> Paginated[AttachmentOut]:
    """List who has the volume, newest first."""
    await services.volumes.get(volume_id, project_id=project_id)
    request = query.page_of(f"attachments of {volume_id}", project_id)
    return await _listed(services, query.filters(volume_id), request, project_id)


@router.get("/attachments", summary="List attachments", responses=errors(BadCursor))
async def list_attachments(
    query: Annotated[AttachmentQuery, Query()], services: ServicesDep, project_id: ProjectDep
) -> Paginated[AttachmentOut]:
    """List the attachments of all volumes, newest first."""
    return await _listed(services, query.filters(query.volume_id), query.page_of("attachments", project_id), project_id)


@router.get("/nodes", summary="List nodes", responses=errors(DatabaseUnavailable))
async def list_nodes(services: ServicesDep, project_id: ProjectDep) -> NodesOut:
    """List the hosts that use volumes, by name."""
    return NodesOut.of(await services.attachments.nodes(project_id=project_id))


async def _listed(
    services: Services, filters: AttachmentFilter, request: PageRequest, project_id: UUID
) -> Paginated[AttachmentOut]:
    page, devices = await services.attachments.list_attachments(filters, request, project_id=project_id)
    names = await services.volume_names.of({one.volume_id for one in page.items}, project_id=project_id)
    return paginated_response(
        page, lambda row: AttachmentOut.of(row, names.get(row.volume_id), devices.get(row.volume_id))
    )
