"""What clients send about volumes, snapshots and jobs."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from api.schemas.base import Body
from api.schemas.fields import BackendName, JobKind, Labels, LabelTerm, Name, Percent, Size, UsageAbove, labels_of
from api.schemas.omittable import Given, Omittable
from api.schemas.pagination import PageQuery
from domain.jobs.states import JobStatus
from domain.jobs.store.jobs import JobFilter
from domain.snapshots.repository import SnapshotFilter
from domain.snapshots.states import SnapshotState
from domain.volumes.repository import VolumeFilter
from domain.volumes.service import NewVolume, VolumeChange
from domain.volumes.states import VolumeState

AUTOGROW_EXAMPLE: Final[dict[str, Any]] = {"usage_above": 80, "percent": 20, "up_to": "1TiB"}


class Autogrow(Body):
    """When the nightly run may grow a volume, by how much, and how far."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["by"]}, {"required": ["percent"]}],
            "examples": [AUTOGROW_EXAMPLE, {"usage_above": 90, "by": "10GiB", "up_to": "500GiB"}],
        }
    )

    usage_above: Annotated[UsageAbove, Field(description="Of its size, more than so many percent must be in use.")]
    by: Annotated[Given[Size], Field(description="Rounded up to a whole MiB, as with `percent`.")] = None
    percent: Given[Percent] = None
    up_to: Annotated[Size, Field(description="It never grows beyond this.")]

    @field_validator("percent")
    @classmethod
    def _exactly_one(cls, percent: float, info: ValidationInfo) -> float:
        if info.data.get("by") is not None:
            raise ValueError("cannot be combined with `by`: say exactly one of them")
        return percent

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if self.by is None and self.percent is None:
            raise ValueError("say how much: `by` an amount, or by a `percent` of the present size")
        return self


class VolumeIn(Body):
    """A volume to be."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "postgres-1", "size": "10GiB", "labels": {"team": "search"}},
                {"name": "postgres-2", "size": "10GiB", "autogrow": AUTOGROW_EXAMPLE},
            ],
            "anyOf": [
                {"required": ["size"], "properties": {"size": {"not": {"type": "null"}}}},
                {"required": ["from_snapshot"]},
            ],
        }
    )

    name: Name
    from_snapshot: Annotated[Given[UUID], Field(description="Begin with the bytes of this snapshot.")] = None
    size: Size | None = Field(
        None,
        validate_default=True,
        description="In bytes; with `from_snapshot`, null or nothing means as large as the snapshot.",
    )
    backend: BackendName | None = Field(
        None, description="Null means the first that is configured; with `from_snapshot`, the snapshot's."
    )
    labels: Labels = Field(default_factory=dict)
    autogrow: Autogrow | None = Field(None, description="For bulk expansions with the policy `autogrow`.")

    @field_validator("size")
    @classmethod
    def _size_or_snapshot(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is None and info.data.get("from_snapshot") is None:
            raise PydanticCustomError("missing", "Field required")
        return size

    def new_volume(self) -> NewVolume:
        """Say it to the domain."""
        return NewVolume(self.name, self.size, self.backend, self.labels, _plain(self.autogrow))


class VolumePatch(Body):
    """What to change of a volume; what is absent stays."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"labels": {"team": "search", "tier": "gold"}},
                {"autogrow": AUTOGROW_EXAMPLE},
                {"autogrow": None},
            ]
        }
    )

    name: Given[Name] = None
    labels: Given[Labels] = None
    autogrow: Autogrow | None = Field(None, description="Null removes it.")

    def change(self) -> VolumeChange:
        """Say it to the domain."""
        given = frozenset(self.model_fields_set)
        return VolumeChange(given, self.name or "", self.labels or {}, _plain(self.autogrow))


class SnapshotIn(Body):
    """A snapshot to be."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "before-the-upgrade"}]})

    name: Annotated[Name, Field(description="Unique among the volume's snapshots.", examples=["before-the-upgrade"])]


class VolumeQuery(PageQuery):
    """Which volumes to list."""

    state: Omittable[VolumeState] = None
    name: Omittable[Name] = None
    label: Annotated[
        list[LabelTerm],
        Field(description="`key:value`; several must all be there.", examples=[["team:search"]]),
    ] = Field(default_factory=list)

    @field_validator("label")
    @classmethod
    def _sorted_and_once(cls, terms: Sequence[str]) -> list[str]:
        labels_of(terms)
        return sorted(terms)

    def filters(self) -> VolumeFilter:
        """Say it to the domain."""
        return VolumeFilter(self.state, self.name, labels_of(self.label))


class SnapshotsOfVolumeQuery(PageQuery):
    """Which snapshots of a volume to list."""

    state: Omittable[SnapshotState] = None
    name: Omittable[Name] = None

    def filters(self, volume_id: UUID | None) -> SnapshotFilter:
        """Say it to the domain."""
        return SnapshotFilter(volume_id, self.state, self.name)


class SnapshotQuery(SnapshotsOfVolumeQuery):
    """Which snapshots to list."""

    volume_id: Omittable[UUID] = None


class JobQuery(PageQuery):
    """Which jobs to list."""

    status: Omittable[JobStatus] = None
    kind: Omittable[JobKind] = None
    volume_id: Omittable[UUID] = None
    parent_id: Omittable[UUID] = Field(None, description="Parts of a bulk job are shown only when it is named here.")

    def filters(self) -> JobFilter:
        """Say it to the domain."""
        return JobFilter(self.status, self.kind, self.volume_id, self.parent_id)


def _plain(autogrow: Autogrow | None) -> dict[str, Any] | None:
    return None if autogrow is None else autogrow.model_dump(exclude_none=True)
