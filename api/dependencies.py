"""Dependencies of the routes as annotated aliases: services, request headers, checks. No route gets a session."""

import re
from typing import Annotated, Final, cast

from fastapi import Depends, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError

from api.idempotency import KeyHeader, idempotent_request
from api.prefer import preferred_wait
from api.schemas.base import HEADER_TEXT
from domain.bulk.service import BulkService
from domain.jobs.acceptance import RequestOrigin
from domain.jobs.service import JobService
from domain.schedules.service import ScheduleService
from domain.services import Services
from domain.snapshots.service import SnapshotService
from domain.volumes.service import VolumeService

_CALLER: Final = re.compile(r"[\x20-\x7e]{1,128}")
_JSON: Final = re.compile(r"application/(json|[a-z0-9.-]+\+json)\s*(;.*)?", re.IGNORECASE | re.ASCII)


# All dependencies are coroutines, although they await nothing: FastAPI would run plain functions in a thread.
async def _services(request: Request) -> Services:
    return cast("Services", request.app.state.services)


ServicesDep = Annotated[Services, Depends(_services)]


async def _volumes(services: ServicesDep) -> VolumeService:
    return services.volumes


async def _snapshots(services: ServicesDep) -> SnapshotService:
    return services.snapshots


async def _bulk(services: ServicesDep) -> BulkService:
    return services.bulk


async def _jobs(services: ServicesDep) -> JobService:
    return services.jobs


async def _schedules(services: ServicesDep) -> ScheduleService:
    return services.schedules


def valid_caller(name: str | None) -> str | None:
    """Return the name that a client claims for itself, unverified; None if it cannot be stored."""
    return name if name and _CALLER.fullmatch(name) else None


async def _origin(
    request: Request,
    x_cistern_caller: Annotated[
        str | None,
        Header(description="Name of the caller, up to 128 ASCII characters; stored as `created_by`."),
        HEADER_TEXT,
    ] = None,
    idempotency_key: KeyHeader = None,
) -> RequestOrigin:
    return RequestOrigin(valid_caller(x_cistern_caller), await idempotent_request(request, idempotency_key))


async def _wait(
    prefer: Annotated[
        list[str] | None,
        Header(description="`wait=N` delays the response until the job has ended, for at most N seconds (max. 30)."),
        HEADER_TEXT,
    ] = None,
) -> int | None:
    return preferred_wait(prefer or [])


async def require_json(request: Request) -> None:
    """Reject a body that is not declared as JSON with 415; FastAPI would report a wrong value."""
    if await request.body() and not _JSON.fullmatch(request.headers.get("Content-Type", "").strip()):
        raise HTTPException(415)


async def reject_query(request: Request) -> None:
    """Reject all query parameters: a filter that is silently ignored does harm."""
    if request.query_params:
        message = {"type": "extra_forbidden", "msg": "this route has no such parameter"}
        raise RequestValidationError([{**message, "loc": ("query", name)} for name in request.query_params])


JsonBody = Depends(require_json)
NoQuery = Depends(reject_query)

VolumesDep = Annotated[VolumeService, Depends(_volumes)]
SnapshotsDep = Annotated[SnapshotService, Depends(_snapshots)]
BulkDep = Annotated[BulkService, Depends(_bulk)]
JobsDep = Annotated[JobService, Depends(_jobs)]
SchedulesDep = Annotated[ScheduleService, Depends(_schedules)]
OriginDep = Annotated[RequestOrigin, Depends(_origin)]
WaitDep = Annotated[int | None, Depends(_wait)]
