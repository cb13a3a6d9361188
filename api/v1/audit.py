"""The audit log over HTTP."""

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.dependencies import ServicesDep
from api.openapi import errors
from api.schemas.base import Omittable
from api.schemas.fields import NameFilter
from api.schemas.pagination import PageQuery, Paginated, paginated_response
from domain.audit.repository import AuditFilter
from domain.errors import BadCursor

router = APIRouter(prefix="/audit", tags=["audit"])

_EXAMPLE: Final[JsonDict] = {
    "id": "01a0b1c2-0000-7000-8000-000000000007",
    "created_at": "2026-01-31T23:59:59.123456Z",
    "action": "volume.expand",
    "name": "backup",
    "key_id": "01a0b1c2-0000-7000-8000-000000000006",
    "request_id": "01a0b1c2-0000-7000-8000-000000000008",
    "peer": "10.0.0.7",
    "job_id": "01a0b1c2-0000-7000-8000-000000000002",
    "subject_id": "01a0b1c2-0000-7000-8000-000000000001",
    "subject_name": None,
    "details": None,
}


class AuditQuery(PageQuery):
    """Filters of the audit log."""

    name: Annotated[Omittable[NameFilter], Field(description="Only what the keys of this name have done.")] = None
    action: Annotated[Omittable[NameFilter], Field(description="Only this action, such as `volume.delete`.")] = None
    subject_id: Annotated[Omittable[UUID], Field(description="Only what was done to this.")] = None
    job_id: Annotated[Omittable[UUID], Field(description="Only the request of this job, and its cancellation.")] = None

    def filters(self) -> AuditFilter:
        """Convert to the domain's filters."""
        return AuditFilter(self.name, self.action, self.subject_id, self.job_id)


class AuditEntryOut(BaseModel):
    """One accepted change."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [_EXAMPLE]})

    id: UUID
    created_at: datetime
    action: str = Field(
        description="The kind of the requested job, or `job.cancel`, `volume.update`, `schedule.create`, "
        "`schedule.update`, `schedule.delete`, `key.create`, `key.rotate`, `key.revoke`, `project.create`, "
        "`project.update`."
    )
    name: str | None = Field(description="Name of the key.")
    key_id: UUID | None
    request_id: str | None
    peer: str | None = Field(description="Address of the client, or of the proxy in front of the API.")
    job_id: UUID | None
    subject_id: UUID | None = Field(description="The volume, snapshot, schedule or key.")
    subject_name: str | None = Field(description="Its name, unless a job was requested for it.")
    project_id: UUID | None = Field(description="The project in which; null before there were projects.")
    details: dict[str, Any] | None = Field(description="`members`: those that an update has changed.")


@router.get("", summary="List the audit log", responses=errors(BadCursor))
async def list_audit(query: Annotated[AuditQuery, Query()], services: ServicesDep) -> Paginated[AuditEntryOut]:
    """List accepted changes, newest first. Refused requests are in the log of the process."""
    page = await services.audit.list_entries(query.filters(), query.page_of("audit"))
    return paginated_response(page, AuditEntryOut.model_validate)
