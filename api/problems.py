"""The table of problem types and the problem response: RFC 9457, ``application/problem+json``.

Domain errors know no HTTP: this table gives each its status and title. Errors of HTTP itself are listed beside them.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from fastapi.encoders import jsonable_encoder
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from domain import errors

MEDIA_TYPE: Final = "application/problem+json"
RETRY_SECONDS: Final = 1
TYPES_PATH: Final = "/problems"


class ProblemType(NamedTuple):
    """The constant part of a problem."""

    status: int
    code: str
    title: str

    @property
    def type(self) -> str:
        """Reference to the explanation, relative to the root of the API."""
        return f"{TYPES_PATH}/{self.code}"


_STATUSES: Final[dict[type[errors.CisternError], tuple[int, str]]] = {
    errors.NotFound: (404, "Not found"),
    errors.VolumeNotFound: (404, "Volume not found"),
    errors.SnapshotNotFound: (404, "Snapshot not found"),
    errors.JobNotFound: (404, "Job not found"),
    errors.ScheduleNotFound: (404, "Schedule not found"),
    errors.KeyNotFound: (404, "Key not found"),
    errors.ProjectNotFound: (404, "Project not found"),
    errors.WebhookNotFound: (404, "Webhook not found"),
    errors.AttachmentNotFound: (404, "Attachment not found"),
    errors.Conflict: (409, "Conflict"),
    errors.VolumeBusy: (409, "Volume is busy"),
    errors.VolumeUnusable: (409, "Volume is unusable"),
    errors.NameTaken: (409, "Name is taken"),
    errors.JobEnded: (409, "Job has ended"),
    errors.JobNotRetryable: (409, "Job cannot be retried"),
    errors.JobIsChild: (409, "Job is a child of a bulk job"),
    errors.VolumeHasSnapshots: (409, "Volume has snapshots"),
    errors.VolumeAttached: (409, "Volume is attached"),
    errors.BackendOvercommitted: (409, "Backend is overcommitted"),
    errors.SnapshotBusy: (409, "Snapshot is busy"),
    errors.SnapshotUnusable: (409, "Snapshot is unusable"),
    errors.ScheduleBusy: (409, "Schedule is busy"),
    errors.ScheduleOwnerGone: (409, "Owner of the schedule is gone"),
    errors.QuotaExceeded: (409, "Quota is exceeded"),
    errors.TooManyWebhooks: (409, "Too many webhooks"),
    errors.PreconditionFailed: (412, "Precondition failed"),
    errors.Invalid: (422, "Request is invalid"),
    errors.ShrinkRefused: (422, "Volumes cannot shrink"),
    errors.SizeLimitExceeded: (422, "Size limit exceeded"),
    errors.UnknownBackend: (422, "Unknown backend"),
    errors.UnknownNode: (422, "Unknown node"),
    errors.BadCursor: (422, "Invalid cursor"),
    errors.IdempotencyKeyReused: (422, "Idempotency-Key was used before"),
    errors.WebhookHostRefused: (422, "Webhooks may not go to this host"),
    errors.TooManyDryRuns: (429, "Too many dry runs"),
    errors.TooManyHeldRequests: (429, "Too many held requests"),
    errors.Unavailable: (503, "Unavailable"),
    errors.DatabaseUnavailable: (503, "Database unavailable"),
    errors.StorageError: (503, "Storage unavailable"),
}

INTERNAL: Final = ProblemType(500, "internal", "Internal error")
JOB_FAILED: Final = ProblemType(424, "job-failed", "Job failed")
GROWTH_REQUIRED: Final = ProblemType(422, "growth-required", "Growth is required")
HOST_MISSING: Final = ProblemType(400, "host-missing", "Host is missing")
HOST_NOT_ALLOWED: Final = ProblemType(421, "host-not-allowed", "Host is not allowed")
CROSS_SITE: Final = ProblemType(403, "cross-site", "Request comes from another site")
KEY_MISSING: Final = ProblemType(401, "key-missing", "A key is needed")
KEY_INVALID: Final = ProblemType(401, "key-invalid", "Key is not valid")
NO_KEYS: Final = ProblemType(401, "no-keys", "There is no key yet")
ROLE_INSUFFICIENT: Final = ProblemType(403, "role-insufficient", "Role is not sufficient")
RATE_LIMITED: Final = ProblemType(429, "rate-limited", "Rate limit is exceeded")
MALFORMED_REQUEST: Final = ProblemType(400, "malformed-request", "Request is malformed")
REQUEST_TIMEOUT: Final = ProblemType(408, "request-timeout", "Request did not arrive in time")
HEADERS_TOO_LARGE: Final = ProblemType(431, "headers-too-large", "Headers are too large")
TOO_MANY_CONNECTIONS: Final = ProblemType(503, "too-many-connections", "Too many connections")
_OTHERS: Final = (
    *(GROWTH_REQUIRED, JOB_FAILED, HOST_MISSING, HOST_NOT_ALLOWED, CROSS_SITE),
    *(KEY_MISSING, KEY_INVALID, NO_KEYS, ROLE_INSUFFICIENT, RATE_LIMITED),
    *(MALFORMED_REQUEST, REQUEST_TIMEOUT, HEADERS_TOO_LARGE, TOO_MANY_CONNECTIONS),
)

#: Statuses of requests that may succeed if they are sent again.
_LATER: Final = (429, 503)

#: Errors that are raised before a service is called.
_HTTP: Final[dict[int, ProblemType]] = {
    400: ProblemType(400, "malformed-json", "Body is not JSON"),
    404: ProblemType(404, "not-found", "Not found"),
    405: ProblemType(405, "method-not-allowed", "Method not allowed"),
    413: ProblemType(413, "content-too-large", "Body is too large"),
    415: ProblemType(415, "unsupported-media-type", "Body must be JSON"),
    422: ProblemType(422, "invalid", "Request is invalid"),
    500: INTERNAL,
}


def type_of(error: type[errors.CisternError]) -> ProblemType:
    """Return the problem type of an error class; a class that is not in the table is like its nearest base class."""
    for kind in error.__mro__:
        if kind in _STATUSES:
            status, title = _STATUSES[kind]
            return ProblemType(status, error.code, title)
    return INTERNAL


_BY_CODE: Final = {problem.code: problem for problem in (*_HTTP.values(), *_OTHERS, *map(type_of, _STATUSES))}
PROBLEM_TYPES: Final[Mapping[str, ProblemType]] = dict(sorted(_BY_CODE.items()))


class FieldProblem(BaseModel):
    """One invalid value."""

    field: str = Field(description="The field, parameter or header; nested names are joined by dots.")
    detail: str
    code: str = Field(description="Machine-readable reason.")


class Problem(BaseModel):
    """An error as of RFC 9457. Further members depend on the code, such as ``job_id``."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="Reference to the explanation of the problem type.")
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path of the request.")
    code: str = Field(description="Stable, machine-readable name of the problem type.")
    request_id: str = Field(description="Id of the request in the logs; also in the header `X-Request-ID`.")
    errors: list[FieldProblem] | None = None


class ProblemResponse(JSONResponse):
    """A response with the media type of problems."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        """Encode as JSON; a lone surrogate that the client sent and the detail repeats becomes a question mark."""
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def http_type(status: int) -> ProblemType:
    """Return the problem type of an HTTP status; an unlisted status gets the code `http-<status>`."""
    return _HTTP.get(status) or ProblemType(status, f"http-{status}", "Request rejected")


def problem_response(
    request: Request,
    problem: ProblemType,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    extensions: Mapping[str, Any] | None = None,
) -> ProblemResponse:
    """Build the problem response of a request; ``extensions`` never replace a standard member."""
    place = {"instance": quote(request.url.path), "request_id": request.state.request_id}
    return build_problem(problem, detail, headers=headers, **{**(extensions or {}), **place})


def build_problem(
    problem: ProblemType, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any
) -> ProblemResponse:
    """Build a problem response; ``members`` has at least `instance` and `request_id`."""
    standard = {"type": problem.type, "title": problem.title, "status": problem.status, "detail": detail}
    content = {**members, **standard, "code": problem.code}
    retry = {"Retry-After": str(RETRY_SECONDS)} if problem.status in _LATER else {}
    return ProblemResponse(jsonable_encoder(content), problem.status, {**retry, **(headers or {})})
