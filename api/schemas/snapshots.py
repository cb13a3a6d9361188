"""Snapshots: the body that takes one, list filters, and the response."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from api.schemas.base import (
    EXAMPLE_SNAPSHOT_ID,
    EXAMPLE_TIME,
    EXAMPLE_VOLUME_ID,
    Omittable,
    RequestBody,
    refuse_more,
)
from api.schemas.fields import (
    MAX_LABELS,
    AllowTorn,
    IdPrefix,
    Labels,
    LabelTerm,
    Name,
    UtcDatetime,
    parse_label_terms,
)
from api.schemas.pagination import PageQuery
from domain.operations import SnapshotState
from domain.snapshots.repository import SnapshotFilter
from domain.storage.consistency import Consistency

SNAPSHOT_EXAMPLE: Final[dict[str, Any]] = {
    "id": EXAMPLE_SNAPSHOT_ID,
    "volume_id": EXAMPLE_VOLUME_ID,
    "name": "before-the-upgrade",
    "state": "ready",
    "size": 10737418240,
    "version": 2,
    "job_id": None,
    "schedule_id": None,
    "labels": {"release": "7.2"},
    "consistency": "application",
    "created_at": EXAMPLE_TIME,
    "updated_at": EXAMPLE_TIME,
}


class SnapshotIn(RequestBody):
    """A snapshot to take."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "before-the-upgrade", "labels": {"release": "7.2"}}]}
    )

    name: Annotated[
        Name, Field(description="Unique among the snapshots of the volume.", examples=["before-the-upgrade"])
    ]
    labels: Labels = Field(default_factory=dict)
    allow_torn: AllowTorn = False


class SnapshotsOfVolumeQuery(PageQuery):
    """Filters of a list of one volume's snapshots."""

    state: Omittable[SnapshotState] = None
    name: Omittable[Name] = None
    id_prefix: Omittable[IdPrefix] = None
    label: Annotated[
        list[LabelTerm],
        BeforeValidator(partial(refuse_more, limit=MAX_LABELS)),
        Field(description="`key:value`; a snapshot must have all of them.", examples=[["release:7.2"]]),
    ] = Field(default_factory=list)

    @field_validator("label")
    @classmethod
    def _distinct_and_sorted(cls, terms: Sequence[str]) -> list[str]:
        parse_label_terms(terms)
        return sorted(terms)  # a cursor is bound to the filters, not to their order

    def filters(self, volume_id: UUID | None) -> SnapshotFilter:
        """Convert to the domain filter."""
        return SnapshotFilter(volume_id, self.state, self.name, self.id_prefix, parse_label_terms(self.label))


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
    labels: Labels
    consistency: Consistency | None = Field(
        description="`application`: nothing was being written, since no process had the volume open, or its file system"
        " was frozen. `crash`: of one moment while the volume was in use, as after a power cut. `copied`: copied while"
        " it was in use, so the bytes may be of several moments. Null while it is being taken, and for those of earlier"
        " versions."
    )
    created_at: UtcDatetime
    updated_at: UtcDatetime
