"""Bodies of projects."""

from datetime import datetime
from typing import Annotated, Final, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict

from api.schemas.base import RequestBody
from api.schemas.fields import MAX_BYTES, ByteLimit
from domain.projects.model import LIMITS, MAX_NAME, Project
from domain.projects.quota import ProjectUsage
from domain.projects.service import NewProject

_EXAMPLE: Final[JsonDict] = {
    "id": "01a0b1c2-0000-7000-8000-000000000007",
    "name": "search",
    "max_volumes": 100,
    "max_bytes": 1099511627776,
    "max_snapshots": None,
    "max_queued_jobs": 1000,
    "usage": {"volumes": 12, "bytes": 128849018880, "snapshots": 40, "queued_jobs": 0},
    "created_by": "admin",
    "created_at": "2026-01-31T23:59:59.123456Z",
}

ProjectName = Annotated[
    str,
    StringConstraints(pattern=rf"^[a-z0-9][a-z0-9._-]{{0,{MAX_NAME - 1}}}$", max_length=MAX_NAME),
    Field(description="Lower-case letters, digits, `.`, `_` and `-`. System keys name it in `Cistern-Project`."),
]
Limit = Annotated[int | None, Field(ge=0, le=MAX_BYTES, strict=True)]


class LimitsIn(RequestBody):
    """Limits of a project; null: no limit. What it has already, it keeps."""

    max_volumes: Limit = None
    max_bytes: Annotated[
        ByteLimit | None, Field(description="Of the sizes of its volumes, with what running jobs may add.")
    ] = None
    max_snapshots: Limit = None
    max_queued_jobs: Annotated[Limit, Field(description="Of jobs that no worker has started yet.")] = None

    def limits(self) -> dict[str, int | None]:
        """Return the limits that are given."""
        return {name: getattr(self, name) for name in LIMITS if name in self.model_fields_set}


class ProjectIn(LimitsIn):
    """A new project."""

    name: ProjectName

    def new_project(self) -> NewProject:
        """Convert to the domain request."""
        return NewProject(self.name, self.limits())


class UsageOut(BaseModel):
    """What a project has."""

    model_config = ConfigDict(from_attributes=True)

    volumes: int
    bytes: int = Field(description="Of the sizes of its volumes, with what running jobs may add.")
    snapshots: int
    queued_jobs: int


class ProjectOut(BaseModel):
    """A project with its limits, null where there is none, and what it has."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: UUID
    name: str
    max_volumes: int | None
    max_bytes: int | None
    max_snapshots: int | None
    max_queued_jobs: int | None
    usage: UsageOut
    created_by: str | None
    created_at: datetime

    @classmethod
    def of(cls, project: Project, usage: ProjectUsage) -> Self:
        """Render a project."""
        columns = ("id", "name", *LIMITS, "created_by", "created_at")
        members = {name: getattr(project, name) for name in columns}
        return cls(**members, usage=UsageOut.model_validate(usage))
