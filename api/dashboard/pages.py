"""The pages: each reads what it shows, and renders it. Scripts ask for the same pages again to keep them up to date."""

from collections.abc import Callable, Coroutine
from hashlib import blake2b
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import FileResponse, HTMLResponse

from api.dashboard.rendering import page
from api.dashboard.views.jobs import job_page
from api.dashboard.views.overview import overview_page
from api.dependencies import PrincipalDep, ServicesDep
from api.etag import NotModifiedDep
from api.problems import type_of
from domain.errors import CisternError

_STATIC: Final = Path(__file__).parent / "static"
_MEDIA_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
#: All files there are: nothing else is looked for.
_FILES: Final = {file.name: file for file in _STATIC.iterdir() if file.suffix in _MEDIA_TYPES}
_TAGS: Final = {name: f'"{blake2b(file.read_bytes(), digest_size=8).hexdigest()}"' for name, file in _FILES.items()}
_MAX_ERRORS: Final = 3


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


@router.get("/jobs/{job_id}")
async def show_job(request: Request, job_id: UUID, services: ServicesDep, principal: PrincipalDep) -> HTMLResponse:
    """Show one job, live."""
    return page(request, "job.html", shown=await job_page(services, job_id, principal))
