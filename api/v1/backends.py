"""Storage backends over HTTP."""

from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.dependencies import ServicesDep
from api.openapi import errors
from domain.errors import DatabaseUnavailable
from domain.storage.directory import BackendStatus
from domain.storage.model import BackendServer

router = APIRouter(prefix="/backends", tags=["backends"])

BACKEND_EXAMPLE: Final[dict[str, Any]] = {
    "name": "local",
    "driver": "file",
    "total": 1099511627776,
    "used": 10737418240,
    "free": 1088774209536,
    "measured_at": "2026-03-01T12:00:00Z",
    "served": True,
    "problem": None,
    "workers": [
        {
            "worker_id": "019539b2-6c00-7000-8000-000000000007",
            "host": "worker-1",
            "since": "2026-03-01T11:00:00Z",
            "problem": None,
        }
    ],
}


class BackendWorkerOut(BaseModel):
    """A live worker that has the backend among its settings."""

    worker_id: UUID
    host: str
    since: datetime = Field(description="Since when it serves the backend, or has the problem.")
    problem: str | None = Field(None, description="Why it does not serve the backend; null if it does.")

    @classmethod
    def of(cls, server: BackendServer) -> Self:
        """Convert a row."""
        return cls(worker_id=server.worker_id, host=server.host, since=server.since, problem=server.problem)


class BackendOut(BaseModel):
    """One storage backend, its capacity and who serves it. Sizes are in bytes."""

    model_config = ConfigDict(json_schema_extra={"examples": [BACKEND_EXAMPLE]})

    name: str
    driver: str
    total: int | None = Field(None, description="Null if there is no limit, or if the capacity is unknown.")
    used: int | None = None
    free: int | None = Field(None, description="What can still be written.")
    measured_at: datetime | None = Field(None, description="When a worker measured the capacity.")
    served: bool = Field(description="Whether a live worker serves it. Jobs on it wait until one does.")
    problem: str | None = Field(None, description="Why no worker serves it.")
    workers: list[BackendWorkerOut] = Field(description="Live workers that have it among their settings.")

    @classmethod
    def of(cls, status: BackendStatus) -> Self:
        """Convert what is known of a backend."""
        row = status.row
        return cls(
            name=row.name,
            driver=row.driver,
            total=row.total,
            used=row.used,
            free=row.free,
            measured_at=row.measured_at,
            served=status.is_served,
            problem=status.problem,
            workers=[BackendWorkerOut.of(server) for server in status.servers],
        )


class BackendsOut(BaseModel):
    """All backends, the default first."""

    items: list[BackendOut]


@router.get("", summary="List storage backends", responses=errors(DatabaseUnavailable))
async def list_backends(services: ServicesDep) -> BackendsOut:
    """List the backends, their capacity as workers have measured it, and who serves them; the first is the default."""
    await services.directory.refresh()
    return BackendsOut(items=[BackendOut.of(status) for status in services.directory.all()])
