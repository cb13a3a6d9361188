"""Bulk jobs over HTTP: one job for many volumes, and its ledger."""

from typing import Annotated
from uuid import UUID

import structlog
from fastapi import APIRouter, Query, Response

from api.accepted import AcceptedDep
from api.dependencies import BulkDep, BulkExpandDep, BulkSnapshotsDep, JsonBody, NoQuery, OriginDep, ServicesDep
from api.openapi import BODY, accepts, errors
from api.problems import GROWTH_REQUIRED
from api.schemas.bulk_snapshots import BulkSnapshotIn
from api.schemas.growth import BulkExpandIn, GrowthBody
from api.schemas.ledger import ItemOut, ItemQuery, PlanOut
from api.schemas.pagination import Paginated, paginated_response
from api.schemas.responses import JobOut
from domain.bulk.expand.policy import BulkExpandRequest
from domain.bulk.expand.service import BulkExpandService
from domain.errors import BadCursor, JobNotFound, UnknownBackend
from domain.jobs.idempotency import RequestOrigin
from domain.jobs.model import Job

log = structlog.get_logger(__name__)

router = APIRouter()


@router.post(
    "/volumes/expand",
    status_code=202,
    operation_id="expand_volumes",
    summary="Grow many volumes",
    tags=["volumes"],
    response_model=JobOut,
    responses=accepts(*BODY, GROWTH_REQUIRED, UnknownBackend)
    | {200: {"model": PlanOut, "description": "What would be done, for `dry_run`."}},
    dependencies=[NoQuery, JsonBody, GrowthBody],
)
async def expand_volumes(
    body: BulkExpandIn, services: ServicesDep, expansion: BulkExpandDep, origin: OriginDep, answer: AcceptedDep
) -> JobOut | Response:
    """Accept one job that grows every selected volume, `max_concurrent` at once; its items say what became of each."""
    body.selection().require_backend(services.backends)
    if body.dry_run:
        plan = PlanOut.from_plan(await expansion.preview(body.expansion()))
        return Response(plan.model_dump_json(), media_type="application/json")
    return await answer(await request_bulk(body.expansion(), expansion, origin))


@router.post(
    "/volumes/snapshots",
    status_code=202,
    operation_id="take_snapshots",
    summary="Take snapshots of many volumes",
    tags=["snapshots"],
    responses=accepts(*BODY, UnknownBackend),
    dependencies=[NoQuery, JsonBody],
)
async def take_snapshots(
    body: BulkSnapshotIn, services: ServicesDep, snapshots: BulkSnapshotsDep, origin: OriginDep, answer: AcceptedDep
) -> JobOut:
    """Accept one job that takes a snapshot of every selected volume; its items say what became of each."""
    body.selection().require_backend(services.backends)
    job = await snapshots.request_snapshots(body.snapshots(), origin=origin)
    _log_accepted(job, body.max_concurrent)
    return await answer(job)


@router.get(
    "/jobs/{job_id}/items",
    operation_id="list_job_items",
    summary="List what became of each volume",
    tags=["jobs"],
    responses=errors(JobNotFound, BadCursor),
)
async def list_job_items(job_id: UUID, query: Annotated[ItemQuery, Query()], bulk: BulkDep) -> Paginated[ItemOut]:
    """List the ledger of a bulk job by volume id, upwards; jobs of other kinds have none."""
    page = query.page_of(f"items of {job_id}")
    items = await bulk.items(job_id, query.status, after=page.after, limit=page.limit)
    return paginated_response(page.page(items, by=lambda item: item.volume_id), ItemOut.model_validate)


async def request_bulk(body: BulkExpandRequest, expansion: BulkExpandService, origin: RequestOrigin) -> Job:
    """Ask for a bulk expansion, and leave in the logs how many volumes at once were asked for."""
    job = await expansion.request_expand(body, origin=origin)
    _log_accepted(job, body.max_concurrent)
    return job


def _log_accepted(job: Job, max_concurrent: int) -> None:
    log.info("bulk.accepted", job_id=str(job.id), kind=job.kind, max_concurrent=max_concurrent)
