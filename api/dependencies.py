"""What routes are handed: services and the client's wishes, as annotated aliases. Never a session."""

import re
from typing import Annotated, Final, cast

from fastapi import Depends, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError

from api.absent import HEADER_TEXT
from api.idempotency import KeyHeader, key_of
from api.waiting import wished_wait
from domain.bulk.service import BulkService
from domain.expansion.service import ExpansionService
from domain.jobs.acceptance import Origin
from domain.jobs.service import JobService
from domain.schedules.service import ScheduleService
from domain.services import Services
from domain.snapshots.bulk import BulkSnapshotService
from domain.snapshots.service import SnapshotService
from domain.volumes.service import VolumeService

_CALLER: Final = re.compile(r"[\x20-\x7e]{1,128}")
_JSON: Final = re.compile(r"application/(json|[a-z0-9.-]+\+json)\s*(;.*)?", re.IGNORECASE | re.ASCII)


# They are coroutines, although they wait for nothing, because FastAPI would run plain functions in a thread.
async def _services(request: Request) -> Services:
    return cast("Services", request.app.state.services)


Front = Annotated[Services, Depends(_services)]


async def _volumes(services: Front) -> VolumeService:
    return services.volumes


async def _snapshots(services: Front) -> SnapshotService:
    return services.snapshots


async def _bulk(services: Front) -> BulkService:
    return services.bulk


async def _bulk_snapshots(services: Front) -> BulkSnapshotService:
    return services.bulk_snapshots


async def _expansion(services: Front) -> ExpansionService:
    return services.expansion


async def _jobs(services: Front) -> JobService:
    return services.jobs


async def _schedules(services: Front) -> ScheduleService:
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
) -> Origin:
    return Origin(caller_of(x_cistern_caller), await key_of(request, idempotency_key))


async def _wait(
    prefer: Annotated[
        list[str] | None,
        Header(description="`wait=N` holds the answer until the job has ended, for up to N seconds (30 at most)."),
        HEADER_TEXT,
    ] = None,
) -> int | None:
    return wished_wait(prefer or [])


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

Volumes = Annotated[VolumeService, Depends(_volumes)]
Snapshots = Annotated[SnapshotService, Depends(_snapshots)]
Bulk = Annotated[BulkService, Depends(_bulk)]
BulkSnapshots = Annotated[BulkSnapshotService, Depends(_bulk_snapshots)]
Expansion = Annotated[ExpansionService, Depends(_expansion)]
Jobs = Annotated[JobService, Depends(_jobs)]
Schedules = Annotated[ScheduleService, Depends(_schedules)]
Asker = Annotated[Origin, Depends(_origin)]
Wait = Annotated[int | None, Depends(_wait)]
