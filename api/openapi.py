"""Declarations for the OpenAPI document: response headers, links, and every error as a problem."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from api.access import SECURITY_SCHEME, openapi_security
from api.problems import (
    CROSS_SITE,
    HOST_NOT_ALLOWED,
    INTERNAL,
    KEY_INVALID,
    KEY_MISSING,
    MEDIA_TYPE,
    RATE_LIMITED,
    ROLE_INSUFFICIENT,
    Problem,
    ProblemType,
    http_type,
    type_of,
)
from domain.errors import CisternError, DatabaseUnavailable, IdempotencyKeyReused, Invalid, TooManyHeldRequests

Responses = dict[int | str, dict[str, Any]]
#: Why a request is rejected.
Reason = type[CisternError] | ProblemType

_REF: Final = "#/components/schemas/{model}"
_COMMON_ERRORS: Final = (
    KEY_MISSING,
    KEY_INVALID,
    ROLE_INSUFFICIENT,
    CROSS_SITE,
    HOST_NOT_ALLOWED,
    RATE_LIMITED,
    type_of(Invalid),
    INTERNAL,
    type_of(DatabaseUnavailable),
)


def _links(operations: Iterable[str], **parameters: str) -> dict[str, Any]:
    expressions = {name: f"$response.body#/{member}" for name, member in parameters.items()}
    return {operation: {"operationId": operation, "parameters": expressions} for operation in operations}


_OF_JOB: Final = ("get_job", "follow_job", "cancel_job", "retry_job", "list_job_items")
_OF_VOLUME: Final = ("get_volume", "expand_volume", "delete_volume", "take_snapshot", "list_snapshots_of_volume")
_OF_SCHEDULE: Final = ("get_schedule", "update_schedule", "delete_schedule", "list_schedule_runs", "run_schedule")
_OF_SNAPSHOT: Final = ("get_snapshot", "restore_snapshot", "delete_snapshot")

#: Additional errors of a route that reads a body.
BODY: Final = (http_type(400), http_type(413), http_type(415))


def _header(description: str, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"} | schema}


_RETRY_AFTER: Final = _header("Poll again after this many seconds.", type="integer")
_REPLAYED: Final = _header("`true` if this is the stored response of an earlier request.")
_APPLIED: Final = _header("The preference that was applied, such as `wait=10`.")

ACCEPTED: Final[Responses] = {
    202: {
        "description": "Accepted: the job is stored and will not be lost.",
        "headers": {
            "Location": _header("URL of the job."),
            "Retry-After": _RETRY_AFTER,
            "Preference-Applied": _APPLIED,
            "Idempotency-Replayed": _REPLAYED,
        },
        "links": _links(_OF_JOB, job_id="id")
        | _links(_OF_VOLUME, volume_id="volume_id")
        | _links(_OF_SNAPSHOT, snapshot_id="snapshot_id"),
    }
}
CREATED: Final[Responses] = {
    201: {
        "description": "The schedule has been created.",
        "headers": {"Location": _header("URL of the schedule."), "Idempotency-Replayed": _REPLAYED},
        "links": _links(_OF_SCHEDULE, schedule_id="id"),
    }
}
POLLED: Final = {
    "Retry-After": _RETRY_AFTER | {"description": "If the job has not ended: poll again after this many seconds."},
    "Preference-Applied": _APPLIED,
}


def documented_get(thing: str, **headers: Any) -> Responses:
    """Declare the responses of a conditional GET."""
    tag = {"ETag": _header(f"Changes whenever the {thing} changes.")}
    return {
        200: {"description": f"The present state of the {thing}.", "headers": tag | headers},
        304: {"description": f"The {thing} has not changed."},
    }


def accepts(*reasons: Reason) -> Responses:
    """Declare the responses of a route that accepts a job."""
    return ACCEPTED | errors(*reasons, IdempotencyKeyReused, TooManyHeldRequests)


def errors(*reasons: Reason) -> Responses:
    """Declare the errors of a route, and those that every route has."""
    by_status = defaultdict[int, list[ProblemType]](list)
    for reason in (*reasons, *_COMMON_ERRORS):
        problem = reason if isinstance(reason, ProblemType) else type_of(reason)
        by_status[problem.status].append(problem)
    return {status: _problem_schema(problems) for status, problems in sorted(by_status.items())}


def document(app: FastAPI) -> None:
    """Add the schema of a problem, and which routes need a key, to the OpenAPI document of ``app``."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()  # FastAPI generates it once
        if Problem.__name__ not in schema["components"]["schemas"]:
            _, definitions = models_json_schema([(Problem, "serialization")], ref_template=_REF)
            schema["components"]["schemas"] |= definitions["$defs"]
            schema["components"]["securitySchemes"] = {SECURITY_SCHEME: {"type": "http", "scheme": "bearer"}}
            for path, methods in schema["paths"].items():
                for method, operation in methods.items():
                    operation["security"] = openapi_security(method, path)
        return schema

    # Replacing the method is FastAPI's documented way to extend the document.
    app.openapi = openapi  # type: ignore[method-assign]


def _problem_schema(problems: list[ProblemType]) -> dict[str, Any]:
    return {
        "description": ", or: ".join(problem.title for problem in problems),
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": _REF.format(model=Problem.__name__)},
                "examples": {problem.code: {"value": _example(problem)} for problem in problems},
            }
        },
    }


def _example(problem: ProblemType) -> dict[str, Any]:
    return {
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": f"{problem.title}.",
        "instance": "/api/v1/volumes",
        "code": problem.code,
        "request_id": "01a0b1c2-0000-7000-8000-000000000003",
    }
