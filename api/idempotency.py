"""``Idempotency-Key``: the same key is the same request, which is carried out once and gets its first answer again."""

import hashlib
import json
from contextlib import suppress
from typing import Annotated, Final

from fastapi import Header, Request
from pydantic import StringConstraints
from starlette.responses import JSONResponse, Response

from api.problems import RETRY_SECONDS
from api.schemas.omittable import Omittable
from api.schemas.responses import JobOut
from api.schemas.schedules import ScheduleOut
from domain.db.base import Entity
from domain.jobs.idempotency import IdempotentReplay, IdempotentRequest
from domain.jobs.model import Job
from domain.jobs.outcomes import Payload
from domain.schedules.model import Schedule

JOBS_AT: Final = "/api/v1/jobs"
SCHEDULES_AT: Final = "/api/v1/schedules"
REPLAYED: Final = "Idempotency-Replayed"

_CREATED: Final = 201
_ACCEPTED: Final = 202

#: Printable ASCII; on the wire, space around a header's value is not part of it.
_KEY: Final = r"^[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?$"

KeyHeader = Annotated[
    Omittable[Annotated[str, StringConstraints(pattern=_KEY)]],
    Header(
        alias="Idempotency-Key",
        description="Up to 255 ASCII characters that name this request. Sent again within 24 hours, by the same caller "
        "and with the same body, it is not carried out again, but answered as it was the first time.",
    ),
]


async def key_of(request: Request, key: str | None) -> IdempotentRequest | None:
    """Say what a request under this key is: the concrete path counts, so that no key acts on two things."""
    if key is None:
        return None
    route = f"{request.method} {request.url.path}"
    return IdempotentRequest(key, route, _fingerprint(await request.body()), _answer)


async def repeat(_: Request, error: Exception) -> Response:
    """Give the first answer again, as it was then."""
    if not isinstance(error, IdempotentReplay):
        raise error
    made = str(error.body["id"])
    where = {"Location": f"{SCHEDULES_AT}/{made}"} if error.status == _CREATED else job_location(made)
    return JSONResponse(error.body, error.status, {**where, REPLAYED: "true"})


def job_location(job_id: str) -> dict[str, str]:
    """Headers that tell where an accepted job is, and when to ask for it."""
    return {"Location": f"{JOBS_AT}/{job_id}", "Retry-After": str(RETRY_SECONDS)}


def _answer(made: Entity) -> tuple[int, Payload]:
    match made:
        case Job():
            return _ACCEPTED, JobOut.from_row(made).model_dump(mode="json")
        case Schedule():
            return _CREATED, ScheduleOut.from_row(made).model_dump(mode="json")
    raise TypeError(f"nobody has said how {type(made).__name__} is answered")


def _fingerprint(body: bytes) -> str:
    """Hash what was said and not how: spaces and the order of members do not make another request."""
    with suppress(ValueError, RecursionError):  # where no body is read, whatever was sent is its own fingerprint
        body = json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(body).hexdigest()
