"""Workers over HTTP: who is alive, and what each of them runs."""

from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from api.dependencies import PrincipalDep, ServicesDep
from api.openapi import errors
from api.schemas.base import EXAMPLE_JOB_ID, EXAMPLE_VOLUME_ID
from domain.access.model import Role
from domain.errors import DatabaseUnavailable
from domain.jobs.workers import WorkerStatus

router = APIRouter(prefix="/workers", tags=["workers"])

WORKER_EXAMPLE: Final[dict[str, Any]] = {
    "id": "019539b2-6c00-7000-8000-000000000007",
    "host": "worker-1",
    "pid": 42,
    "alive": True,
    "started_at": "2026-03-01T11:00:00Z",
    "heartbeat_at": "2026-03-01T12:00:00Z",
    "slots": 10,
    "backends": ["local"],
    "jobs": [
        {
            "id": EXAMPLE_JOB_ID,
            "kind": "volume.expand",
            "volume_id": EXAMPLE_VOLUME_ID,
            "parent_id": None,
            "started_at": "2026-03-01T11:59:58Z",
        }
    ],
}


class RunningJobOut(BaseModel):
    """A job that a worker runs."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    kind: str
    volume_id: UUID | None
    parent_id: UUID | None = Field(description="The bulk job that it is a lane of.")
    started_at: datetime | None


class WorkerOut(BaseModel):
    """One worker process."""

    model_config = ConfigDict(json_schema_extra={"examples": [WORKER_EXAMPLE]})

    id: UUID
    host: str
    pid: int
    alive: bool = Field(description="Whether its heartbeat is current. A silent worker is listed for an hour.")
    started_at: datetime
    heartbeat_at: datetime
    slots: int | None = Field(description="Maximum number of jobs at once; null for one of an earlier version.")
    backends: list[str] = Field(description="The backends that it serves.")
    jobs: list[RunningJobOut] = Field(description="What it runs: of all projects for system keys, else of the key's.")

    @classmethod
    def of(cls, status: WorkerStatus, backends: list[str]) -> Self:
        """Convert what is known of a worker."""
        row = status.row
        return cls(
            **{name: getattr(row, name) for name in ("id", "host", "pid", "started_at", "heartbeat_at", "slots")},
            alive=status.is_alive,
            backends=backends,
            jobs=[RunningJobOut.model_validate(job) for job in status.jobs],
        )


class WorkersOut(BaseModel):
    """All workers."""

    items: list[WorkerOut]


@router.get("", summary="List workers", responses=errors(DatabaseUnavailable))
async def list_workers(services: ServicesDep, principal: PrincipalDep) -> WorkersOut:
    """List the workers and what they run, the one that started first first."""
    await services.directory.refresh()
    found = await services.workers.all(None if principal.role is Role.SYSTEM else principal.project.id)
    return WorkersOut(items=[WorkerOut.of(one, services.directory.served_by(one.row.id)) for one in found])
