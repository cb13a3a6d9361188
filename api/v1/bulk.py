"""Bulk jobs over HTTP: one job for many volumes, and its ledger."""

from typing import Annotated
from uuid import UUID

import structlog
from fastapi import APIRouter, Query, Response

from api.answers import Answer
from api.dependencies import Asker, Bulk, BulkSnapshots, Expansion, Front, JsonBody, NoQuery
from api.openapi import BODY, accepts, refusals
from api.pagination import Paginated, paginated_response
from api.problems import GROWTH_REQUIRED
from api.v1.bulk_snapshots import BulkSnapshotIn
from api.v1.growth import BulkIn, GrowthSaid
from api.v1.ledger import ItemOut, ItemQuery, PlanOut
from api.v1.schemas import JobOut
from domain.errors import BadCursor, JobNotFound, UnknownBackend
from domain.expansion.policy import BulkExpansion
from domain.expansion.service import ExpansionService
from domain.jobs.acceptance import Origin
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
    dependencies=[NoQuery, JsonBody, GrowthSaid],
)
async def expand_volumes(
    wish: BulkIn, services: Front, expansion: Expansion, origin: Asker, answer: Answer
) -> JobOut | Response:
    """Accept one job that grows every selected volume, `max_concurrent` at once; its items say what became of each."""
    wish.selection().require_backend(services.backends)
    if wish.dry_run:
        plan = PlanOut.of(await expansion.preview(wish.expansion()))
        return Response(plan.model_dump_json(), media_type="application/json")
    return await answer(await request_bulk(wish.expansion(), expansion, origin))


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
    wish: BulkSnapshotIn, services: Front, snapshots: BulkSnapshots, origin: Asker, answer: Answer
) -> JobOut:
    """Accept one job that takes a snapshot of every selected volume; its items say what became of each."""
    wish.selection().require_backend(services.backends)
    job = await snapshots.request_snapshots(wish.snapshots(), origin=origin)
    _say(job, wish.max_concurrent)
    return await answer(job)


@router.get(
    "/jobs/{job_id}/items",
    operation_id="list_job_items",
    summary="List what became of each volume",
    tags=["jobs"],
    responses=refusals(JobNotFound, BadCursor),
)
async def list_job_items(job_id: UUID, query: Annotated[ItemQuery, Query()], bulk: Bulk) -> Paginated[ItemOut]:
    """List the ledger of a bulk job by volume id, upwards; jobs of other kinds have none."""
    page = query.page_of(f"items of {job_id}")
    items = await bulk.items(job_id, query.status, after=page.after, limit=page.limit)
    return paginated_response(page.page(items, by=lambda item: item.volume_id), ItemOut.model_validate)


async def request_bulk(wanted: BulkExpansion, expansion: ExpansionService, origin: Origin) -> Job:
    """Ask for a bulk expansion, and leave in the logs how many volumes at once were asked for."""
    job = await expansion.request_expand(wanted, origin=origin)
    _say(job, wanted.max_concurrent)
    return job


def _say(job: Job, max_concurrent: int) -> None:
    log.info("bulk.accepted", job_id=str(job.id), kind=job.kind, max_concurrent=max_concurrent)
