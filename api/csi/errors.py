"""The status of gRPC that each error of Cistern becomes."""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Final

from grpc import StatusCode

from api.cli.client import ApiCallFailed, ApiUnreachable, JsonObject

_Table = Mapping[StatusCode, Iterable[str]]

_PROBLEMS: Final[_Table] = {
    StatusCode.INVALID_ARGUMENT: (
        *("invalid", "growth-required", "unknown-backend", "webhook-host-refused", "job-failed"),
        *("malformed-json", "malformed-request", "content-too-large", "headers-too-large", "unsupported-media-type"),
        *("host-missing", "host-not-allowed", "method-not-allowed"),
    ),
    StatusCode.NOT_FOUND: (
        *("not-found", "volume-not-found", "snapshot-not-found", "attachment-not-found", "job-not-found"),
        *("schedule-not-found", "key-not-found", "project-not-found", "webhook-not-found"),
    ),
    StatusCode.ALREADY_EXISTS: ("name-taken", "idempotency-key-reused"),
    StatusCode.OUT_OF_RANGE: ("shrink-refused", "size-limit-exceeded"),
    StatusCode.ABORTED: (
        *("volume-busy", "snapshot-busy", "schedule-busy", "conflict", "precondition-failed", "bad-cursor"),
        *("job-ended", "child-job", "job-not-retryable"),
    ),
    StatusCode.FAILED_PRECONDITION: (
        *("volume-unusable", "snapshot-unusable", "volume-has-snapshots", "volume-attached", "schedule-owner-gone"),
        "too-many-webhooks",
    ),
    StatusCode.RESOURCE_EXHAUSTED: ("quota-exceeded", "backend-overcommitted"),
    StatusCode.UNAUTHENTICATED: ("key-missing", "key-invalid", "no-keys"),
    StatusCode.PERMISSION_DENIED: ("role-insufficient", "cross-site"),
    StatusCode.UNAVAILABLE: (
        *("unavailable", "database-unavailable", "storage-error", "request-timeout", "too-many-connections"),
        # A later repetition succeeds. RESOURCE_EXHAUSTED would mean that there is no room.
        *("rate-limited", "too-many-held-requests", "too-many-dry-runs"),
        "unknown-node",  # until `cistern node` runs on this host
    ),
    StatusCode.INTERNAL: ("internal",),
}
#: What a job has failed with. All others are INTERNAL.
_JOB_CODES: Final[_Table] = {
    StatusCode.FAILED_PRECONDITION: ("volume-in-use",),
    StatusCode.OUT_OF_RANGE: ("size-impossible", "size-unsupported"),
    StatusCode.RESOURCE_EXHAUSTED: ("storage-full",),
    StatusCode.UNAVAILABLE: ("backend-unavailable", "storage-busy", "storage-unavailable", "worker-lost"),
}
#: For codes that a later version of the API may have.
_HTTP: Final[Mapping[int, StatusCode]] = {
    HTTPStatus.UNAUTHORIZED: StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: StatusCode.NOT_FOUND,
    HTTPStatus.CONFLICT: StatusCode.FAILED_PRECONDITION,
    HTTPStatus.UNPROCESSABLE_ENTITY: StatusCode.INVALID_ARGUMENT,
    HTTPStatus.TOO_MANY_REQUESTS: StatusCode.UNAVAILABLE,
    HTTPStatus.SERVICE_UNAVAILABLE: StatusCode.UNAVAILABLE,
}


def _by_code(table: _Table) -> dict[str, StatusCode]:
    return {code: status for status, codes in table.items() for code in codes}


PROBLEM_STATUS: Final[Mapping[str, StatusCode]] = _by_code(_PROBLEMS)
JOB_STATUS: Final[Mapping[str, StatusCode]] = _by_code(_JOB_CODES)


class CallRejected(Exception):
    """A call of the orchestrator cannot be carried out, or not yet."""

    def __init__(self, status: StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def invalid(message: str) -> CallRejected:
    """Return the error of a call that can never succeed as it is."""
    return CallRejected(StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> CallRejected:
    """Return the error of a call about something that does not exist."""
    return CallRejected(StatusCode.NOT_FOUND, message)


def out_of_range(message: str) -> CallRejected:
    """Return the error of a call that asks for a size that is not possible."""
    return CallRejected(StatusCode.OUT_OF_RANGE, message)


def refused(message: str) -> CallRejected:
    """Return the error of a call that is not possible in the present state."""
    return CallRejected(StatusCode.FAILED_PRECONDITION, message)


def at_work(job_id: object) -> CallRejected:
    """Return the error of a call whose job goes on: the orchestrator calls again, and finds the same job."""
    return CallRejected(StatusCode.ABORTED, f"job {job_id} is still at work; call again")


def job_failure(job: JsonObject) -> CallRejected:
    """Return the error of a call whose job has not succeeded."""
    error = job["error"] or {"code": job["status"], "detail": "it was cancelled"}
    status = JOB_STATUS.get(error["code"], StatusCode.INTERNAL)
    if job["error"] is None:
        status = StatusCode.ABORTED
    return CallRejected(status, f"job {job['id']} has {job['status']}: {error['detail']} ({error['code']})")


def status_of(error: ApiCallFailed) -> StatusCode:
    """Return the status for a call that the API has refused, or could not take."""
    if isinstance(error, ApiUnreachable):
        return StatusCode.UNAVAILABLE
    known = PROBLEM_STATUS.get(error.problem_code)
    return known or _HTTP.get(error.problem.get("status", 0), StatusCode.INTERNAL)
