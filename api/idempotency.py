"""``Idempotency-Key``: a request is carried out once per key; a repeated request gets the stored response."""

import hashlib
import json
from contextlib import suppress
from typing import Annotated, Final

from fastapi import Header, Request
from pydantic import StringConstraints
from starlette.responses import JSONResponse, Response

from api.problems import RETRY_SECONDS
from api.schemas.base import Omittable
from api.schemas.jobs import JobOut
from api.schemas.schedules import ScheduleOut
from domain.db.base import Entity
from domain.jobs.acceptance import IdempotentReplay, IdempotentRequest
from domain.jobs.model import Job
from domain.jobs.outcomes import Payload
from domain.schedules.model import Schedule

JOBS_PATH: Final = "/api/v1/jobs"
SCHEDULES_PATH: Final = "/api/v1/schedules"
REPLAYED: Final = "Idempotency-Replayed"

_CREATED: Final = 201
_ACCEPTED: Final = 202

#: Printable ASCII without surrounding spaces, which HTTP does not count as part of a header's value.
_KEY: Final = r"^[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?$"

KeyHeader = Annotated[
    Omittable[Annotated[str, StringConstraints(pattern=_KEY)]],
    Header(
        alias="Idempotency-Key",
        description="Up to 255 ASCII characters that identify this request. If the same caller sends the same request "
        "with the same key within 24 hours, it is not carried out again: the first response is returned.",
    ),
]


async def idempotent_request(request: Request, key: str | None) -> IdempotentRequest | None:
    """Describe a request with a key. The route is the concrete path: one key never acts on two resources."""
    if key is None:
        return None
    route = f"{request.method} {request.url.path}"
    return IdempotentRequest(key, route, _fingerprint(await request.body()), _render_response)


async def render_replay(_: Request, error: Exception) -> Response:
    """Return the stored response of the first request."""
    if not isinstance(error, IdempotentReplay):
        raise error
    created_id = str(error.body["id"])
    location = {"Location": f"{SCHEDULES_PATH}/{created_id}"} if error.status == _CREATED else job_location(created_id)
    return JSONResponse(error.body, error.status, {**location, REPLAYED: "true"})


def job_location(job_id: str) -> dict[str, str]:
    """Return the headers with the URL of an accepted job and the delay before the first poll."""
    return {"Location": f"{JOBS_PATH}/{job_id}", "Retry-After": str(RETRY_SECONDS)}


def _render_response(created: Entity) -> tuple[int, Payload]:
    match created:
        case Job():
            return _ACCEPTED, JobOut.from_row(created).model_dump(mode="json")
        case Schedule():
            return _CREATED, ScheduleOut.from_row(created).model_dump(mode="json")
    raise TypeError(f"no response is defined for a {type(created).__name__}")


def _fingerprint(body: bytes) -> str:
    """Hash the meaning of a body: white space and the order of members make no difference."""
    with suppress(ValueError, RecursionError):  # a body that is not JSON is hashed as it is: some routes read none
        body = json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(body).hexdigest()
