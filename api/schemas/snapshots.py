"""Snapshots: the body that takes one, list filters, and the response."""

from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.base import EXAMPLE_SNAPSHOT_ID, EXAMPLE_TIME, EXAMPLE_VOLUME_ID, Omittable, RequestBody
from api.schemas.fields import IdPrefix, Name, UtcDatetime
from api.schemas.pagination import PageQuery
from domain.operations import SnapshotState
from domain.snapshots.repository import SnapshotFilter

SNAPSHOT_EXAMPLE: Final[dict[str, Any]] = {
    "id": EXAMPLE_SNAPSHOT_ID,
    "volume_id": EXAMPLE_VOLUME_ID,
    "name": "before-the-upgrade",
    "state": "ready",
    "size": 10737418240,
    "version": 2,
    "job_id": None,
    "schedule_id": None,
    "created_at": EXAMPLE_TIME,
    "updated_at": EXAMPLE_TIME,
}


class SnapshotIn(RequestBody):
    """A snapshot to take."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "before-the-upgrade"}]})

    name: Annotated[
        Name, Field(description="Unique among the snapshots of the volume.", examples=["before-the-upgrade"])
    ]


class SnapshotsOfVolumeQuery(PageQuery):
    """Filters of a list of one volume's snapshots."""

    state: Omittable[SnapshotState] = None
    name: Omittable[Name] = None
    id_prefix: Omittable[IdPrefix] = None

    def filters(self, volume_id: UUID | None) -> SnapshotFilter:
        """Convert to the domain filter."""
        return SnapshotFilter(volume_id, self.state, self.name, self.id_prefix)


class SnapshotQuery(SnapshotsOfVolumeQuery):
    """Filters of a list of all snapshots."""

    volume_id: Omittable[UUID] = None


class SnapshotOut(BaseModel):
    """One snapshot: the bytes of a volume at one moment."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [SNAPSHOT_EXAMPLE]})

    id: UUID
    volume_id: UUID
    name: str
    state: SnapshotState
    size: int = Field(description="Size of the volume in bytes when the snapshot was taken.")
    version: int = Field(description="Incremented when an operation is accepted and when it ends.")
    job_id: UUID | None = Field(description="The job that holds the snapshot at the moment.")
    schedule_id: UUID | None = Field(description="The schedule that took it, and that may delete it under its rules.")
    created_at: UtcDatetime
    updated_at: UtcDatetime
