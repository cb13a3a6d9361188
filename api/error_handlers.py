"""Every error that a route or FastAPI raises becomes a problem response."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match

from api.acceptance import render_replay
from api.access import PAGES, AccessRefused, row_of
from api.problems import INTERNAL, PROBLEM_TYPES, http_type, problem_response, type_of
from api.session_cookies import MARK
from domain.errors import CisternError, DatabaseUnavailable, QuotaExceeded
from domain.jobs.acceptance import IdempotentReplay

_MAX_ERRORS: Final = 20
_MAX_FIELD_LENGTH: Final = 100
_METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")

_DETAILS: Final = {
    400: "The body is not valid JSON in UTF-8.",
    404: "There is nothing at this path.",
    405: "This path does not support the method; the Allow header lists those that it supports.",
    415: "The body must be sent as application/json.",
}

log = structlog.get_logger(__name__)


class EarlyResponse(Exception):
    """A dependency of a route has the response: the route itself is not called, or does not return."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


def internal_error(request: Request) -> Response:
    """Return a 500 without details; the log has them under the same request id."""
    return problem_response(request, INTERNAL, "An internal error occurred; the server log has the details.")


async def render_error(request: Request, error: CisternError) -> Response:
    """Render a domain error; an internal one is logged, and its message stays private."""
    problem = type_of(type(error))
    if problem is INTERNAL:
        log.error("request.failed", exc_info=error)
        return internal_error(request)
    if isinstance(error, QuotaExceeded):
        services, principal = request.app.state.services, request.state.principal
        await services.webhooks.record_reached_limit(principal.project.id, error)
    extensions = {name: value for name, value in error.details.items() if name != "field"}
    if "field" in error.details:
        extensions["errors"] = [{"field": error.details["field"], "detail": error.message, "code": error.code}]
    unknown = _unknown_result(request) if isinstance(error, DatabaseUnavailable) else ""
    return problem_response(request, problem, error.message + unknown, extensions=extensions)


def _unknown_result(request: Request) -> str:
    """Warn a client whose change may have been committed although PostgreSQL did not confirm it."""
    if request.method == "GET":  # also a HEAD, which the gate passes on as GET
        return ""
    how = ": repeat it with the same Idempotency-Key." if "Idempotency-Key" in request.headers else "."
    return f" The request may have been accepted{how}"


async def _validation_error(request: Request, error: RequestValidationError) -> Response:
    found: Sequence[Mapping[str, Any]] = error.errors()
    if found[0]["type"] == "json_invalid":
        return problem_response(request, http_type(400), f"{_DETAILS[400]} ({found[0]['ctx']['error']})")
    listed = [_field_error(one) for one in found[:_MAX_ERRORS]]
    # If the only error has a problem type of its own, the response has that type.
    problem = PROBLEM_TYPES.get(listed[0]["code"]) if len(found) == 1 else None
    detail = "; ".join(f"{one['field']}: {one['detail']}" for one in listed)
    return problem_response(request, problem or http_type(422), detail, extensions={"errors": listed})


def _field_error(error: Mapping[str, Any]) -> dict[str, str]:
    """Name the field as the client wrote it, truncated: the response must not repeat unlimited input."""
    place, *names = error["loc"]
    field = ".".join(str(name) for name in names) or str(place)
    return {
        "field": field[:_MAX_FIELD_LENGTH],
        "detail": error["msg"].removeprefix("Value error, "),
        "code": error["type"].replace("_", "-"),
    }


async def render_access_refused(request: Request, error: AccessRefused) -> Response:
    """Render the refusal of a request that has no key, or none that may do this."""
    is_unknown = error.problem.status == HTTPStatus.UNAUTHORIZED
    if is_unknown and row_of(request.url.path) in PAGES and MARK.decode() not in request.headers:
        wanted = quote(request.url.path + (request.url.query and f"?{request.url.query}"))
        return RedirectResponse("/sign-in" if wanted == "/" else f"/sign-in?next={wanted}", HTTPStatus.SEE_OTHER)
    headers = {"WWW-Authenticate": 'Bearer realm="cistern"'} if is_unknown else {}
    return problem_response(request, error.problem, error.message, headers=headers)


async def _early_response(_: Request, error: EarlyResponse) -> Response:
    return error.response


async def _http_error(request: Request, error: HTTPException) -> Response:
    problem = http_type(error.status_code)
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    return problem_response(request, problem, _DETAILS.get(problem.status) or str(error.detail), headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes that match the path; Starlette's own header has those of the first only."""
    scopes = ({**request.scope, "method": method} for method in _METHODS)
    return [
        scope["method"]
        for scope in scopes
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]


HANDLERS: Final[dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]]] = {
    CisternError: render_error,
    AccessRefused: render_access_refused,
    IdempotentReplay: render_replay,
    EarlyResponse: _early_response,
    RequestValidationError: _validation_error,
    HTTPException: _http_error,
}
