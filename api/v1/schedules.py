"""Routes of schedules: create, get, update, pause, delete, run now."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.acceptance import SCHEDULES_PATH, AcceptedDep, OriginDep
from api.dependencies import ActorDep, ProjectDep, ServicesDep
from api.etag import IfMatchDep, NotModifiedDep, schedule_tag
from api.openapi import BODY, CREATED, accepts, documented_get, errors
from api.problems import GROWTH_REQUIRED
from api.schemas.jobs import JobOut
from api.schemas.pagination import PageQuery, Paginated, paginated_response
from api.schemas.schedules import RunOut, ScheduleIn, ScheduleOut, SchedulePatch, ScheduleQuery
from domain.errors import (
    BadCursor,
    IdempotencyKeyReused,
    NameTaken,
    PreconditionFailed,
    QuotaExceeded,
    ScheduleBusy,
    ScheduleNotFound,
    UnknownBackend,
)

router = APIRouter(prefix="/schedules", tags=["schedules"])


@router.post(
    "",
    status_code=201,
    summary="Create a schedule",
    responses=CREATED | errors(*BODY, NameTaken, UnknownBackend, GROWTH_REQUIRED, IdempotencyKeyReused),
)
async def create_schedule(
    body: ScheduleIn, services: ServicesDep, origin: OriginDep, response: Response
) -> ScheduleOut:
    """Create a schedule. When it is due, it creates a job, unless the job of its previous run has not ended."""
    schedule = await services.schedules.create(body.new_schedule(), origin=origin)
    response.headers["Location"] = f"{SCHEDULES_PATH}/{schedule.id}"
    return ScheduleOut.from_row(schedule)


@router.get("", summary="List schedules", responses=errors(BadCursor))
async def list_schedules(
    query: Annotated[ScheduleQuery, Query()], services: ServicesDep, project_id: ProjectDep
) -> Paginated[ScheduleOut]:
    """List schedules, newest first, each with its last runs."""
    request = query.page_of("schedules", project_id)
    page, runs = await services.schedules.list_schedules(query.filters(), request, project_id=project_id)
    return paginated_response(page, lambda schedule: ScheduleOut.from_row(schedule, runs.get(schedule.id, ())))


@router.get(
    "/{schedule_id}",
    summary="Get a schedule",
    response_model=ScheduleOut,
    responses=documented_get("schedule") | errors(ScheduleNotFound),
)
async def get_schedule(
    schedule_id: UUID, services: ServicesDep, project_id: ProjectDep, not_modified: NotModifiedDep
) -> ScheduleOut | Response:
    """Return a schedule with its next time and its last runs."""
    schedule, runs = await services.schedules.get(schedule_id, project_id=project_id)
    return not_modified(schedule_tag(schedule, runs)) or ScheduleOut.whole(schedule, runs)


@router.patch(
    "/{schedule_id}",
    summary="Change or pause a schedule",
    responses=errors(*BODY, ScheduleNotFound, NameTaken, UnknownBackend, GROWTH_REQUIRED, PreconditionFailed),
)
async def update_schedule(
    schedule_id: UUID, patch: SchedulePatch, services: ServicesDep, actor: ActorDep, if_match: IfMatchDep
) -> ScheduleOut:
    """Change a schedule, and become its owner. Times that passed while it was paused are not caught up."""
    schedule, _ = await services.schedules.get(schedule_id, project_id=actor.project_id)
    changed = await services.schedules.change(
        schedule_id, patch.changes(schedule.action), check=lambda *state: if_match(schedule_tag(*state)), actor=actor
    )
    return ScheduleOut.from_row(*changed)


@router.delete("/{schedule_id}", status_code=204, summary="Delete a schedule", responses=errors(ScheduleNotFound))
async def delete_schedule(schedule_id: UUID, services: ServicesDep, actor: ActorDep) -> None:
    """Delete a schedule and the list of its runs. Jobs that it has created continue."""
    await services.schedules.delete(schedule_id, actor=actor)


@router.get("/{schedule_id}/runs", summary="List a schedule's runs", responses=errors(ScheduleNotFound, BadCursor))
async def list_schedule_runs(
    schedule_id: UUID, query: Annotated[PageQuery, Query()], services: ServicesDep, project_id: ProjectDep
) -> Paginated[RunOut]:
    """List the outcomes of a schedule's times, newest first."""
    request = query.page_of(f"runs of {schedule_id}", project_id)
    page = await services.schedules.runs(schedule_id, request, project_id=project_id)
    return paginated_response(page, RunOut.model_validate)


@router.post(
    "/{schedule_id}/run",
    status_code=202,
    summary="Run a schedule now",
    responses=accepts(ScheduleNotFound, ScheduleBusy, QuotaExceeded),
)
async def run_schedule(schedule_id: UUID, services: ServicesDep, origin: OriginDep, accepted: AcceptedDep) -> JobOut:
    """Run a schedule now, in addition to its times, even if it is paused. Fails while a run of it is active."""
    return await accepted(await services.schedule_runner.run_now(schedule_id, origin=origin))
