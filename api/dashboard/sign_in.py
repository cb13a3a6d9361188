"""Sign in and out: a key is exchanged for a session, whose token is in a cookie that scripts cannot read.

With a system key, the project that the pages show is in another cookie.
"""

import re
from http import HTTPStatus
from typing import Annotated, Final
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from api.access import PAGES, row_of
from api.dashboard.rendering import page
from api.dependencies import ServicesDep
from api.request_headers import RequestHeaders
from api.session_cookies import clear_session, set_project, set_session
from domain.errors import DatabaseUnavailable
from domain.projects.model import MAX_NAME

_MAX_NEXT: Final = 2000
#: Nothing else goes into a cookie.
_PROJECT_NAME: Final = re.compile(f"[a-z0-9._-]{{1,{MAX_NAME}}}")

router = APIRouter(include_in_schema=False)


@router.get("/sign-in")
async def show_sign_in(
    request: Request, next_path: Annotated[str, Query(alias="next", max_length=_MAX_NEXT)] = "/"
) -> HTMLResponse:
    """Ask for a key."""
    return page(request, "sign_in.html", next_path=_safe(next_path), problem=None)


@router.post("/sign-in")
async def sign_in(request: Request, services: ServicesDep) -> Response:
    """Begin a session, and go to the page that was wanted. An older session of the browser ends."""
    form = parse_qs((await request.body()).decode("latin-1"))
    key, next_path = (form.get(name, [""])[0].strip() for name in ("key", "next"))
    next_path = _safe(next_path)
    try:
        principal = await services.keys.authenticate(key)
        if principal is None:
            problem = "This key is unknown, revoked or expired, or it was not typed completely."
            return page(request, "sign_in.html", HTTPStatus.UNPROCESSABLE_ENTITY, next_path=next_path, problem=problem)
        if request.state.principal is not None:
            await services.sessions.sign_out(request.state.principal)
        token = await services.sessions.sign_in(principal)
    except DatabaseUnavailable:
        problem = "The key cannot be looked up now: the database does not answer. Try again in a moment."
        return page(request, "sign_in.html", HTTPStatus.SERVICE_UNAVAILABLE, next_path=next_path, problem=problem)
    response = RedirectResponse(next_path, HTTPStatus.SEE_OTHER)
    set_session(response, _headers(request), token)
    return response


@router.post("/project")
async def choose_project(request: Request) -> Response:
    """Show another project from now on. Each request checks whether there is one with this name."""
    name = parse_qs((await request.body()).decode("latin-1")).get("name", [""])[0]
    response = RedirectResponse("/", HTTPStatus.SEE_OTHER)
    if _PROJECT_NAME.fullmatch(name):
        set_project(response, _headers(request), name)
    return response


@router.post("/sign-out")
async def sign_out(request: Request, services: ServicesDep) -> Response:
    """End the session."""
    if request.state.principal is not None:
        await services.sessions.sign_out(request.state.principal)
    response = RedirectResponse("/sign-in", HTTPStatus.SEE_OTHER)
    clear_session(response, _headers(request))
    response.headers["Clear-Site-Data"] = '"cache"'
    return response


def _headers(request: Request) -> RequestHeaders:
    headers: RequestHeaders = request.state.headers
    return headers


def _safe(path: str) -> str:
    """Return the path if it is one of a page, else that of the overview: never another site."""
    parts = urlsplit(path)
    is_own = not parts.scheme and not parts.netloc and path.isprintable() and "\\" not in path
    return path if is_own and "GET" in PAGES.get(row_of(parts.path) or "", ()) else "/"
