"""The pages: each reads what it shows, and renders it. Scripts ask for the same pages again to keep them up to date."""

from collections.abc import Callable, Coroutine
from hashlib import blake2b
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import FileResponse, HTMLResponse

from api.dashboard.queries import AuditPageQuery, JobsQuery, LedgerQuery, ListQuery, VolumesQuery
from api.dashboard.rendering import page
from api.dashboard.views.jobs import job_page, jobs_of_query, ledger_of_query
from api.dashboard.views.overview import overview_page
from api.dashboard.views.schedules import cron_words, next_times, schedule_page, schedules_of_query
from api.dashboard.views.settings import settings_page
from api.dashboard.views.volumes import is_usable, volume_page, volumes_of_query
from api.dependencies import PrincipalDep, ServicesDep
from api.etag import NotModifiedDep
from api.problems import type_of
from domain.bulk.model import ItemStatus
from domain.errors import CisternError
from domain.jobs.kinds import JobKind
from domain.jobs.states import JobStatus
from domain.operations import VolumeState

_STATIC: Final = Path(__file__).parent / "static"
_MEDIA_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
#: All files there are: nothing else is looked for.
_FILES: Final = {file.name: file for file in _STATIC.rglob("*") if file.suffix in _MEDIA_TYPES}
_TAGS: Final = {name: f'"{blake2b(file.read_bytes(), digest_size=8).hexdigest()}"' for name, file in _FILES.items()}
_MAX_ERRORS: Final = 3
_MAX_CRON: Final = 100
#: The kinds of jobs in the filter: lanes are listed on the page of their bulk job only.
_KINDS: Final = [kind for kind in JobKind if kind is not JobKind.BULK_LANE]


class _PageRoute(APIRoute):
    """A route whose errors are pages, too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except CisternError as error:
                status, _, title = type_of(type(error))
                if status == HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise
                return page(request, "problem.html", status, title=title, detail=error.message)
            except RequestValidationError as error:
                detail = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()[:_MAX_ERRORS])
                title = "This address is not valid"
                return page(request, "problem.html", HTTPStatus.UNPROCESSABLE_ENTITY, title=title, detail=detail)

        return handle


router = APIRouter(include_in_schema=False, route_class=_PageRoute)


@router.get("/static/{name}")
async def static_file(name: str, not_modified: NotModifiedDep) -> Response:
    """Return a style sheet, a script or an image. Browsers ask again each time: an upgrade changes all of them."""
    if name not in _FILES:
        raise HTTPException(404)
    headers = {"Cache-Control": "no-cache", "ETag": _TAGS[name]}
    media_type = _MEDIA_TYPES[_FILES[name].suffix]
    return not_modified(_TAGS[name]) or FileResponse(_FILES[name], media_type=media_type, headers=headers)


@router.get("/")
async def show_overview(request: Request, services: ServicesDep, principal: PrincipalDep) -> HTMLResponse:
    """Show whether all is well."""
    return page(request, "overview.html", overview=await overview_page(services, principal))


@router.get("/jobs")
async def show_jobs(
    request: Request, query: Annotated[JobsQuery, Query()], services: ServicesDep, principal: PrincipalDep
) -> HTMLResponse:
    """Show jobs, newest first."""
    jobs, cursor = await jobs_of_query(services, query, principal)
    return page(request, "jobs.html", jobs=jobs, cursor=cursor, query=query, statuses=[*JobStatus], kinds=_KINDS)


@router.get("/jobs/{job_id}")
async def show_job(
    request: Request,
    job_id: UUID,
    query: Annotated[LedgerQuery, Query()],
    services: ServicesDep,
    principal: PrincipalDep,
) -> HTMLResponse:
    """Show one job, live, with its ledger."""
    shown = await job_page(services, job_id, principal)
    ledger, cursor = await ledger_of_query(services, job_id, query, principal) if shown.has_ledger else ((), None)
    values: dict[str, Any] = {"shown": shown, "ledger": ledger, "cursor": cursor, "query": query}
    return page(request, "job.html", **values, statuses=[*ItemStatus])


@router.get("/volumes")
async def show_volumes(
    request: Request, query: Annotated[VolumesQuery, Query()], services: ServicesDep, principal: PrincipalDep
) -> HTMLResponse:
    """Show volumes, newest first."""
    shown = await volumes_of_query(services, query, principal)
    return page(request, "volumes.html", shown=shown, query=query, states=[*VolumeState])


@router.get("/volumes/{volume_id}")
async def show_volume(
    request: Request, volume_id: UUID, services: ServicesDep, principal: PrincipalDep
) -> HTMLResponse:
    """Show one volume, with its snapshots and jobs."""
    return page(request, "volume.html", shown=await volume_page(services, volume_id, principal), is_usable=is_usable)


@router.get("/schedules")
async def show_schedules(
    request: Request, query: Annotated[ListQuery, Query()], services: ServicesDep, principal: PrincipalDep
) -> HTMLResponse:
    """Show schedules, newest first."""
    schedules, cursor = await schedules_of_query(services, query, principal)
    return page(request, "schedules.html", schedules=schedules, cursor=cursor, query=query)


@router.get("/schedules/preview")
async def preview_schedule(
    request: Request,
    cron: Annotated[str, Query(max_length=_MAX_CRON)],
    time_zone: Annotated[str, Query(max_length=_MAX_CRON)],
) -> HTMLResponse:
    """Show when an expression is due, for the form of a schedule."""
    return page(request, "preview.html", words=cron_words(cron), times=next_times(cron, time_zone))


@router.get("/schedules/{schedule_id}")
async def show_schedule(
    request: Request,
    schedule_id: UUID,
    query: Annotated[ListQuery, Query()],
    services: ServicesDep,
    principal: PrincipalDep,
) -> HTMLResponse:
    """Show one schedule, with its next times and its runs."""
    return page(
        request, "schedule.html", shown=await schedule_page(services, schedule_id, query, principal), query=query
    )


@router.get("/settings")
async def show_settings(
    request: Request, query: Annotated[AuditPageQuery, Query()], services: ServicesDep, principal: PrincipalDep
) -> HTMLResponse:
    """Show the project, its keys, and the audit log."""
    return page(request, "settings.html", shown=await settings_page(services, query, principal), query=query)
