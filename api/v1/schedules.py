"""Schedules over HTTP: make, look, change, pause, run now."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.answers import Answer
from api.dependencies import Asker, Front, JsonBody, NoQuery, Schedules
from api.idempotency import SCHEDULES_AT
from api.openapi import BODY, accepts, makes_schedule, refusals
from api.pagination import PageQuery, Paginated, paginated_response
from api.problems import GROWTH_REQUIRED
from api.v1.schedule_shapes import RunOut, ScheduleIn, ScheduleOut, SchedulePatch, ScheduleQuery
from api.v1.schemas import JobOut
from domain.errors import BadCursor, NameTaken, ScheduleBusy, ScheduleNotFound, UnknownBackend

router = APIRouter(prefix="/schedules", tags=["schedules"])


@router.post(
    "",
    status_code=201,
    operation_id="create_schedule",
    summary="Make a schedule",
    responses=makes_schedule(*BODY, NameTaken, UnknownBackend, GROWTH_REQUIRED),
    dependencies=[NoQuery, JsonBody],
)
async def create_schedule(wanted: ScheduleIn, schedules: Schedules, origin: Asker, response: Response) -> ScheduleOut:
    """Make a schedule: a job is asked for whenever it is due, and only if that of the run before has ended."""
    schedule = await schedules.create(wanted.new_schedule(), origin=origin)
    response.headers["Location"] = f"{SCHEDULES_AT}/{schedule.id}"
    return ScheduleOut.of(schedule)


@router.get("", operation_id="list_schedules", summary="List schedules", responses=refusals(BadCursor))
async def list_schedules(query: Annotated[ScheduleQuery, Query()], schedules: Schedules) -> Paginated[ScheduleOut]:
    """List schedules, newest first, each with its last runs."""
    page, runs = await schedules.list_schedules(query.name, query.page_of("schedules"))
    return paginated_response(page, lambda schedule: ScheduleOut.of(schedule, runs.get(schedule.id, ())))


@router.get(
    "/{schedule_id}",
    operation_id="get_schedule",
    summary="Look at a schedule",
    responses=refusals(ScheduleNotFound),
    dependencies=[NoQuery],
)
async def get_schedule(schedule_id: UUID, schedules: Schedules) -> ScheduleOut:
    """Show a schedule, when it is due next, and its last runs."""
    return ScheduleOut.of(*await schedules.get(schedule_id))


@router.patch(
    "/{schedule_id}",
    operation_id="update_schedule",
    summary="Change or pause a schedule",
    responses=refusals(*BODY, ScheduleNotFound, NameTaken, UnknownBackend, GROWTH_REQUIRED),
    dependencies=[NoQuery, JsonBody],
)
async def update_schedule(schedule_id: UUID, patch: SchedulePatch, schedules: Schedules) -> ScheduleOut:
    """Change a schedule. What it would have been due for while it was paused is not made up for."""
    schedule, _ = await schedules.get(schedule_id)
    return ScheduleOut.of(*await schedules.change(schedule_id, patch.changes(schedule.action)))


@router.delete(
    "/{schedule_id}",
    status_code=204,
    operation_id="delete_schedule",
    summary="Delete a schedule",
    responses=refusals(ScheduleNotFound),
    dependencies=[NoQuery],
)
async def delete_schedule(schedule_id: UUID, schedules: Schedules) -> None:
    """Delete a schedule, with the list of its runs; a job that it has started goes on."""
    await schedules.delete(schedule_id)


@router.get(
    "/{schedule_id}/runs",
    operation_id="list_schedule_runs",
    summary="List a schedule's runs",
    responses=refusals(ScheduleNotFound, BadCursor),
)
async def list_schedule_runs(
    schedule_id: UUID, query: Annotated[PageQuery, Query()], schedules: Schedules
) -> Paginated[RunOut]:
    """List what became of a schedule's times, newest first."""
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
async def run_schedule(schedule_id: UUID, services: Front, origin: Asker, answer: Answer) -> JobOut:
    """Accept a run beside those that are due, also of a schedule that is paused; refused while one is going."""
    return await answer(await services.starter.run_now(schedule_id, origin=origin))
