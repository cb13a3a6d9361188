"""Routes of schedules: create, get, update, pause, delete, run now."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.accepted import AcceptedDep
from api.dependencies import JsonBody, NoQuery, OriginDep, SchedulesDep, ServicesDep
from api.idempotency import SCHEDULES_PATH
from api.openapi import BODY, accepts, creates_schedule, errors
from api.problems import GROWTH_REQUIRED
from api.schemas.jobs import JobOut
from api.schemas.pagination import PageQuery, Paginated, paginated_response
from api.schemas.schedules import RunOut, ScheduleIn, ScheduleOut, SchedulePatch, ScheduleQuery
from domain.errors import BadCursor, NameTaken, ScheduleBusy, ScheduleNotFound, UnknownBackend

router = APIRouter(prefix="/schedules", tags=["schedules"])


@router.post(
    "",
    status_code=201,
    operation_id="create_schedule",
    summary="Create a schedule",
    responses=creates_schedule(*BODY, NameTaken, UnknownBackend, GROWTH_REQUIRED),
    dependencies=[NoQuery, JsonBody],
)
async def create_schedule(
    body: ScheduleIn, schedules: SchedulesDep, origin: OriginDep, response: Response
) -> ScheduleOut:
    """Create a schedule. When it is due, it creates a job, unless the job of its previous run has not ended."""
    schedule = await schedules.create(body.new_schedule(), origin=origin)
    response.headers["Location"] = f"{SCHEDULES_PATH}/{schedule.id}"
    return ScheduleOut.from_row(schedule)


@router.get("", operation_id="list_schedules", summary="List schedules", responses=errors(BadCursor))
async def list_schedules(query: Annotated[ScheduleQuery, Query()], schedules: SchedulesDep) -> Paginated[ScheduleOut]:
    """List schedules, newest first, each with its last runs."""
    page, runs = await schedules.list_schedules(query.name, query.page_of("schedules"))
    return paginated_response(page, lambda schedule: ScheduleOut.from_row(schedule, runs.get(schedule.id, ())))


@router.get(
    "/{schedule_id}",
    operation_id="get_schedule",
    summary="Get a schedule",
    responses=errors(ScheduleNotFound),
    dependencies=[NoQuery],
)
async def get_schedule(schedule_id: UUID, schedules: SchedulesDep) -> ScheduleOut:
    """Return a schedule with its next time and its last runs."""
    return ScheduleOut.from_row(*await schedules.get(schedule_id))


@router.patch(
    "/{schedule_id}",
    operation_id="update_schedule",
    summary="Change or pause a schedule",
    responses=errors(*BODY, ScheduleNotFound, NameTaken, UnknownBackend, GROWTH_REQUIRED),
    dependencies=[NoQuery, JsonBody],
)
async def update_schedule(schedule_id: UUID, patch: SchedulePatch, schedules: SchedulesDep) -> ScheduleOut:
    """Change a schedule. Times that passed while it was paused are not caught up."""
    schedule, _ = await schedules.get(schedule_id)
    return ScheduleOut.from_row(*await schedules.change(schedule_id, patch.changes(schedule.action)))


@router.delete(
    "/{schedule_id}",
    status_code=204,
    operation_id="delete_schedule",
    summary="Delete a schedule",
    responses=errors(ScheduleNotFound),
    dependencies=[NoQuery],
)
async def delete_schedule(schedule_id: UUID, schedules: SchedulesDep) -> None:
    """Delete a schedule and the list of its runs. Jobs that it has created continue."""
    await schedules.delete(schedule_id)


@router.get(
    "/{schedule_id}/runs",
    operation_id="list_schedule_runs",
    summary="List a schedule's runs",
    responses=errors(ScheduleNotFound, BadCursor),
)
async def list_schedule_runs(
    schedule_id: UUID, query: Annotated[PageQuery, Query()], schedules: SchedulesDep
) -> Paginated[RunOut]:
    """List the outcomes of a schedule's times, newest first."""
    page = await schedules.runs(schedule_id, query.page_of(f"runs of {schedule_id}"))
    return paginated_response(page, RunOut.model_validate)


@router.post(
    "/{schedule_id}/run",
    status_code=202,
    operation_id="run_schedule",
    summary="Run a schedule now",
    responses=accepts(ScheduleNotFound, ScheduleBusy),
    dependencies=[NoQuery],
)
async def run_schedule(schedule_id: UUID, services: ServicesDep, origin: OriginDep, accepted: AcceptedDep) -> JobOut:
    """Run a schedule now, in addition to its times, even if it is paused. Fails while a run of it is active."""
    return await accepted(await services.schedule_runner.run_now(schedule_id, origin=origin))
