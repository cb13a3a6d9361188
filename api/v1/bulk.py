"""Routes of bulk jobs: expand or snapshot many volumes by one job, and list its ledger."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response
from structlog.contextvars import bound_contextvars

from api.acceptance import AcceptedDep, OriginDep
from api.access import require_role
from api.dependencies import PrincipalDep, ProjectDep, ServicesDep
from api.openapi import BODY, accepts, errors
from api.problems import GROWTH_REQUIRED
from api.schemas.bulk import BulkExpandIn, BulkSnapshotIn, ItemOut, ItemQuery, PlanOut, RequireGrowthBody
from api.schemas.jobs import JobOut
from api.schemas.pagination import Paginated, paginated_response
from domain.access.model import Role
from domain.bulk.requests import BulkRequest
from domain.errors import BadCursor, JobNotFound, QuotaExceeded, TooManyDryRuns, UnknownBackend
from domain.jobs.acceptance import RequestOrigin
from domain.jobs.model import Job
from domain.services import Services

router = APIRouter()


@router.post(
    "/volumes/expand",
    status_code=202,
    summary="Expand many volumes",
    tags=["volumes"],
    response_model=JobOut,
    responses=accepts(*BODY, GROWTH_REQUIRED, UnknownBackend, QuotaExceeded, TooManyDryRuns)
    | {200: {"model": PlanOut, "description": "The plan, for `dry_run`."}},
    dependencies=[RequireGrowthBody],
)
async def expand_volumes(
    body: BulkExpandIn, services: ServicesDep, principal: PrincipalDep, origin: OriginDep, accepted: AcceptedDep
) -> JobOut | Response:
    """Create a job that expands every selected volume, `max_concurrent` at once; its items have the results."""
    if not body.dry_run:
        require_role(principal, Role.OWNER)
    body.selection().require_backend(services.directory)
    if body.dry_run:
        plan = PlanOut.from_plan(await services.bulk.preview(body.expansion(), project_id=principal.project.id))
        return Response(plan.model_dump_json(), media_type="application/json")
    return await accepted(await request_bulk(services, body.expansion(), origin))


@router.post(
    "/volumes/snapshots",
    status_code=202,
    summary="Take snapshots of many volumes",
    tags=["snapshots"],
    responses=accepts(*BODY, UnknownBackend, QuotaExceeded),
)
async def take_snapshots(
    body: BulkSnapshotIn, services: ServicesDep, origin: OriginDep, accepted: AcceptedDep
) -> JobOut:
    """Create a job that takes a snapshot of every selected volume; its items have the results."""
    body.selection().require_backend(services.directory)
    return await accepted(await request_bulk(services, body.snapshots(), origin))


@router.get(
    "/jobs/{job_id}/items",
    summary="List the items of a bulk job",
    tags=["jobs"],
    responses=errors(JobNotFound, BadCursor),
)
async def list_job_items(
    job_id: UUID, query: Annotated[ItemQuery, Query()], services: ServicesDep, project_id: ProjectDep
) -> Paginated[ItemOut]:
    """List the result of each volume, in ascending order of volume ids. Only bulk jobs have items."""
    request = query.page_of(f"items of {job_id}", project_id)
    items = await services.bulk.items(
        job_id, query.status, project_id=project_id, after=request.after, limit=request.limit
    )
    page = request.page(items, by=lambda item: item.volume_id)
    names = await services.volume_names.of({item.volume_id for item in page.items}, project_id=project_id)
    return paginated_response(page, lambda item: ItemOut.of(item, names))


async def request_bulk(services: Services, request: BulkRequest, origin: RequestOrigin) -> Job:
    """Request a bulk job; the log line of its acceptance has its `max_concurrent` too."""
    with bound_contextvars(max_concurrent=request.max_concurrent):
        return await services.bulk.request(request, origin=origin)
