"""Storage backends over HTTP."""

from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.dependencies import PrincipalDep, ServicesDep
from api.openapi import errors
from domain.access.model import Role
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
    "promised": 21474836480,
    "measured_at": "2026-03-01T12:00:00Z",
    "filesystems": ["btrfs", "ext4", "xfs"],
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
    total: int | None = Field(
        None, description="Null if there is no limit, if the capacity is unknown, or if the key is no system key."
    )
    used: int | None = None
    free: int | None = Field(None, description="What can still be written.")
    promised: int | None = Field(None, description="The sum of the sizes of its volumes, at most a minute old.")
    measured_at: datetime | None = Field(None, description="When a worker measured the capacity.")
    filesystems: list[str] = Field(description="The file systems that every live worker can make in its volumes.")
    served: bool = Field(description="Whether a live worker serves it. Jobs on it wait until one does.")
    problem: str | None = Field(None, description="Why no worker serves it.")
    workers: list[BackendWorkerOut] = Field(description="Live workers that have it among their settings.")

    @classmethod
    def of(cls, status: BackendStatus, *, with_capacity: bool) -> Self:
        """Convert what is known of a backend. Its capacity says something of what is in other projects."""
        row = status.row
        columns = ("total", "used", "free", "promised", "measured_at") if with_capacity else ()
        return cls(
            name=row.name,
            driver=row.driver,
            **{name: getattr(row, name) for name in columns},
            filesystems=sorted(status.filesystems or ()),
            served=status.is_served,
            problem=status.problem,
            workers=[BackendWorkerOut.of(server) for server in status.servers],
        )


class BackendsOut(BaseModel):
    """All backends, the default first."""

    items: list[BackendOut]


@router.get("", summary="List storage backends", responses=errors(DatabaseUnavailable))
async def list_backends(services: ServicesDep, principal: PrincipalDep) -> BackendsOut:
    """List the backends and who serves them; the first is the default. System keys see the measured capacity too."""
    await services.directory.refresh()
    with_capacity = principal.role is Role.SYSTEM
    return BackendsOut(items=[BackendOut.of(one, with_capacity=with_capacity) for one in services.directory.all()])
