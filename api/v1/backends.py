"""Storage backends over HTTP."""

import asyncio
from typing import Final

from fastapi import APIRouter

from api.dependencies import NoQuery, ServicesDep
from api.openapi import errors
from api.schemas.responses import BackendOut, BackendsOut, Failure
from domain.errors import StorageError
from domain.storage.backends import Backends

#: A file system that hangs must not make the others invisible.
_PATIENCE_SECONDS: Final = 5.0

router = APIRouter(prefix="/backends", tags=["backends"])


@router.get(
    "", operation_id="list_backends", summary="List storage backends", responses=errors(), dependencies=[NoQuery]
)
async def list_backends(services: ServicesDep) -> BackendsOut:
    """List the configured backends and how full they are; the first is the default."""
    backends = services.backends
    return BackendsOut(items=await asyncio.gather(*(_look_at(backends, name) for name in backends.names())))


async def _look_at(backends: Backends, name: str) -> BackendOut:
    driver = backends.scheme(name)
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            capacity = await backends.get(name).capacity()
    except StorageError as error:
        return BackendOut(name=name, driver=driver, error=Failure(code=error.code, detail=error.message))
    except TimeoutError:
        slow = Failure(code="storage-unavailable", detail="The storage did not answer in time.")
        return BackendOut(name=name, driver=driver, error=slow)
    return BackendOut(name=name, driver=driver, total=capacity.total, used=capacity.used)
