"""What happens to an exception on its way out: handlers for everything that a route or FastAPI may raise."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from api.idempotency import repeat
from api.problems import INTERNAL, PROBLEM_TYPES, http_type, problem_response, type_of
from domain.errors import CisternError
from domain.jobs.idempotency import IdempotentReplay

_MOST_ERRORS: Final = 20
_LONGEST_FIELD: Final = 100
_METHODS: Final = ("DELETE", "GET", "PATCH", "POST", "PUT")

_DETAILS: Final = {
    400: "The body cannot be read as JSON in UTF-8.",
    404: "There is nothing at this address.",
    405: "The address exists, but not with this method; the header Allow says which it has.",
    413: "The body is larger than 1 MiB.",
    415: "The body must be sent as application/json.",
}

log = structlog.get_logger(__name__)


class NoResponsePossible(Exception):
    """A stream is asked for whose end the client has seen: 204 tells an `EventSource` not to come again."""


def install(app: FastAPI) -> None:
    """Make every refusal a problem."""
    app.add_exception_handler(CisternError, render_error)
    app.add_exception_handler(IdempotentReplay, repeat)
    app.add_exception_handler(NoResponsePossible, _no_response)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def internal_error(request: Request) -> Response:
    """Say that it is our fault, and nothing more; the log has the rest under the same request id."""
    return problem_response(request, INTERNAL, "Something went wrong on our side; the log knows more.")


async def render_error(request: Request, error: Exception) -> Response:
    """Say why a request is refused, as far as that is anybody's business."""
    if not isinstance(error, CisternError):
        raise error
    problem = type_of(type(error))
    if problem is INTERNAL:
        log.error("request.failed", exc_info=error)
        return internal_error(request)
    extensions = {name: value for name, value in error.details.items() if name != "field"}
    if "field" in error.details:
        extensions["errors"] = [{"field": error.details["field"], "detail": error.message, "code": error.code}]
    return problem_response(request, problem, error.message, extensions=extensions)


async def _invalid(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    found: Sequence[Mapping[str, Any]] = error.errors()
    if found[0]["type"] == "json_invalid":
        return problem_response(request, http_type(400), f"{_DETAILS[400]} ({found[0]['ctx']['error']})")
    listed = [_field_error(one) for one in found[:_MOST_ERRORS]]
    # A single fault that has an explanation of its own is the problem.
    problem = PROBLEM_TYPES.get(listed[0]["code"]) if len(found) == 1 else None
    detail = "; ".join(f"{one['field']}: {one['detail']}" for one in listed)
    return problem_response(request, problem or http_type(422), detail, extensions={"errors": listed})


def _field_error(error: Mapping[str, Any]) -> dict[str, str]:
    """Name the field as the client wrote it, but never repeat more of the input than its beginning."""
    place, *names = error["loc"]
    field = ".".join(str(name) for name in names) or str(place)
    return {
        "field": field[:_LONGEST_FIELD],
        "detail": error["msg"].removeprefix("Value error, "),
        "code": error["type"].replace("_", "-"),
    }


async def _no_response(_: Request, __: Exception) -> Response:
    return Response(status_code=204)


async def _http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    problem = http_type(error.status_code)
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(_methods_here(request))
    return problem_response(request, problem, _DETAILS.get(problem.status) or str(error.detail), headers=headers)


def _methods_here(request: Request) -> list[str]:
    """Starlette names the methods of the first route at an address; several routes may share one."""
    scopes = ({**request.scope, "method": method} for method in _METHODS)
    return [
        scope["method"]
        for scope in scopes
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]
