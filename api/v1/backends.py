"""Storage backends over HTTP."""

import asyncio
from typing import Final

from fastapi import APIRouter

from api.dependencies import NoQuery, ServicesDep
from api.openapi import errors
from api.schemas.backends import BackendOut, BackendsOut
from api.schemas.jobs import FailureOut
from domain.errors import StorageError
from domain.storage.backends import Backends

#: Limit per backend: one hanging file system must not delay the response for the others.
_TIMEOUT_SECONDS: Final = 5.0

router = APIRouter(prefix="/backends", tags=["backends"])


@router.get(
    "", operation_id="list_backends", summary="List storage backends", responses=errors(), dependencies=[NoQuery]
)
async def list_backends(services: ServicesDep) -> BackendsOut:
    """List the configured backends and their capacity; the first is the default."""
    backends = services.backends
    return BackendsOut(items=await asyncio.gather(*(_render(backends, name) for name in backends.names())))


async def _render(backends: Backends, name: str) -> BackendOut:
    driver = backends.scheme(name)
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            capacity = await backends.get(name).capacity()
    except StorageError as error:
        return BackendOut(name=name, driver=driver, error=FailureOut(code=error.code, detail=error.message))
    except TimeoutError:
        timeout = FailureOut(code="storage-unavailable", detail="The storage did not respond in time.")
        return BackendOut(name=name, driver=driver, error=timeout)
    return BackendOut(name=name, driver=driver, total=capacity.total, used=capacity.used)
