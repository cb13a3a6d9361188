"""What routes are handed: services and the client's wishes, as annotated aliases. Never a session."""

import re
from typing import Annotated, Final, cast

from fastapi import Depends, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError

from api.idempotency import KeyHeader, key_of
from api.prefer import preferred_wait
from api.schemas.omittable import HEADER_TEXT
from domain.bulk.expand.service import BulkExpandService
from domain.bulk.service import BulkService
from domain.bulk.snapshot.service import BulkSnapshotService
from domain.jobs.idempotency import RequestOrigin
from domain.jobs.service import JobService
from domain.schedules.service import ScheduleService
from domain.services import Services
from domain.snapshots.service import SnapshotService
from domain.volumes.service import VolumeService

_CALLER: Final = re.compile(r"[\x20-\x7e]{1,128}")
_JSON: Final = re.compile(r"application/(json|[a-z0-9.-]+\+json)\s*(;.*)?", re.IGNORECASE | re.ASCII)


# They are coroutines, although they wait for nothing, because FastAPI would run plain functions in a thread.
async def _services(request: Request) -> Services:
    return cast("Services", request.app.state.services)


ServicesDep = Annotated[Services, Depends(_services)]


async def _volumes(services: ServicesDep) -> VolumeService:
    return services.volumes


async def _snapshots(services: ServicesDep) -> SnapshotService:
    return services.snapshots


async def _bulk(services: ServicesDep) -> BulkService:
    return services.bulk


async def _bulk_snapshots(services: ServicesDep) -> BulkSnapshotService:
    return services.bulk_snapshots


async def _expansion(services: ServicesDep) -> BulkExpandService:
    return services.expansion


async def _jobs(services: ServicesDep) -> JobService:
    return services.jobs


async def _schedules(services: ServicesDep) -> ScheduleService:
    return services.schedules


def caller_of(name: str | None) -> str | None:
    """Believe what the client says of itself; a name that cannot be kept is as good as none."""
    return name if name and _CALLER.fullmatch(name) else None


async def _origin(
    request: Request,
    x_cistern_caller: Annotated[
        str | None,
        Header(description="Who asks, in up to 128 ASCII characters; kept as `created_by`."),
        HEADER_TEXT,
    ] = None,
    idempotency_key: KeyHeader = None,
) -> RequestOrigin:
    return RequestOrigin(caller_of(x_cistern_caller), await key_of(request, idempotency_key))


async def _wait(
    prefer: Annotated[
        list[str] | None,
        Header(description="`wait=N` holds the answer until the job has ended, for up to N seconds (30 at most)."),
        HEADER_TEXT,
    ] = None,
) -> int | None:
    return preferred_wait(prefer or [])


async def json_body(request: Request) -> None:
    """Refuse a body that does not claim to be JSON; FastAPI would call it a wrong value."""
    if await request.body() and not _JSON.fullmatch(request.headers.get("Content-Type", "").strip()):
        raise HTTPException(415)


async def no_query(request: Request) -> None:
    """Refuse parameters where there are none: a filter that is ignored does harm unnoticed."""
    if request.query_params:
        message = {"type": "extra_forbidden", "msg": "this route has no such parameter"}
        raise RequestValidationError([{**message, "loc": ("query", name)} for name in request.query_params])


JsonBody = Depends(json_body)
NoQuery = Depends(no_query)

VolumesDep = Annotated[VolumeService, Depends(_volumes)]
SnapshotsDep = Annotated[SnapshotService, Depends(_snapshots)]
BulkDep = Annotated[BulkService, Depends(_bulk)]
BulkSnapshotsDep = Annotated[BulkSnapshotService, Depends(_bulk_snapshots)]
BulkExpandDep = Annotated[BulkExpandService, Depends(_expansion)]
JobsDep = Annotated[JobService, Depends(_jobs)]
SchedulesDep = Annotated[ScheduleService, Depends(_schedules)]
OriginDep = Annotated[RequestOrigin, Depends(_origin)]
WaitDep = Annotated[int | None, Depends(_wait)]
