"""Storage backends over HTTP."""

import asyncio
from typing import Any, Final

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.dependencies import ServicesDep
from api.openapi import errors
from api.schemas.jobs import FailureOut
from domain.errors import StorageError
from domain.storage.backends import Backends

#: Limit per backend: one hanging file system must not delay the response for the others.
_TIMEOUT_SECONDS: Final = 5.0

router = APIRouter(prefix="/backends", tags=["backends"])


BACKEND_EXAMPLE: Final[dict[str, Any]] = {
    "name": "local",
    "driver": "file",
    "total": 1099511627776,
    "used": 10737418240,
    "error": None,
}


class BackendOut(BaseModel):
    """One storage backend and its capacity. Sizes are in bytes."""

    model_config = ConfigDict(json_schema_extra={"examples": [BACKEND_EXAMPLE]})

    name: str
    driver: str
    total: int | None = Field(None, description="Null if there is no limit, or if the capacity is unknown.")
    used: int | None = None
    error: FailureOut | None = Field(None, description="Why the capacity is unknown.")


class BackendsOut(BaseModel):
    """All backends, the default first."""

    items: list[BackendOut]


@router.get("", summary="List storage backends", responses=errors())
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
