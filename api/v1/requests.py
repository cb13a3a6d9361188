"""What clients send. A member that is not described here is refused, so a misspelt one never goes unnoticed."""

from collections.abc import Sequence
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from api.absent import Absent, Given, without_null_defaults
from api.pagination import PageQuery
from api.problems import GROWTH_REQUIRED
from api.v1.fields import BackendName, JobKind, Labels, LabelTerm, Name, Percent, Size, labels_of
from domain.jobs.repository import JobFilter
from domain.jobs.states import JobStatus
from domain.volumes.growth import Growth
from domain.volumes.repository import VolumeFilter
from domain.volumes.service import NewVolume, VolumeChange
from domain.volumes.states import VolumeState


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return without_null_defaults(handler.resolve_ref_schema(handler(core_schema)))


class Autogrow(_Body):
    """When the nightly run may grow a volume, by how much, and how far."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["by"]}, {"required": ["percent"]}]})

    usage_above: int = Field(ge=1, le=99, strict=True, description="Percent of the size that must be in use.")
    by: Given[Size] = None
    percent: Given[Percent] = None
    up_to: Size

    @model_validator(mode="after")
    def _one_step(self) -> Self:
        if (self.by is None) == (self.percent is None):
            raise ValueError("say exactly one of `by` and `percent`")
        return self


class VolumeIn(_Body):
    """A volume to be."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "postgres-1", "size": "10GiB", "labels": {"team": "search"}}]}
    )

    name: Name
    size: Size
    backend: BackendName | None = Field(None, description="None means the first that is configured.")
    labels: Labels = Field(default_factory=dict)
    autogrow: Autogrow | None = None

    def new_volume(self) -> NewVolume:
        """Say it to the domain."""
        return NewVolume(self.name, self.size, self.backend, self.labels, _plain(self.autogrow))


class VolumePatch(_Body):
    """What to change of a volume; what is absent stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"labels": {"team": "search", "tier": "gold"}}]})

    name: Given[Name] = None
    labels: Given[Labels] = None
    autogrow: Autogrow | None = Field(None, description="Null removes it.")

    def change(self) -> VolumeChange:
        """Say it to the domain."""
        given = frozenset(self.model_fields_set)
        return VolumeChange(given, self.name or "", self.labels or {}, _plain(self.autogrow))


class GrowthIn(_Body):
    """How much larger: exactly one way to say it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"to": "20GiB"}, {"by": "10GiB"}, {"percent": 25}],
            "minProperties": 1,
            "maxProperties": 1,
        }
    )

    to: Given[Size] = None
    by: Given[Size] = None
    percent: Given[Percent] = None

    @model_validator(mode="after")
    def _one_wish(self) -> Self:
        wishes = sum(wish is not None for wish in (self.to, self.by, self.percent))
        if not wishes:
            raise PydanticCustomError(
                GROWTH_REQUIRED.code, "say how much: `to` a size, `by` an amount, or by a `percent` of the present size"
            )
        if wishes > 1:
            raise ValueError("say exactly one of `to`, `by` and `percent`")
        return self

    def growth(self) -> Growth:
        """Say it to the domain."""
        return Growth(to=self.to, by=self.by, percent=self.percent)


class VolumeQuery(PageQuery):
    """Which volumes to list."""

    state: Absent[VolumeState] = None
    name: Absent[Name] = None
    label: Annotated[
        list[LabelTerm],
        Field(description="`key:value`; several must all be there.", examples=[["team:search"]]),
    ] = Field(default_factory=list)

    @field_validator("label")
    @classmethod
    def _sorted_and_once(cls, terms: Sequence[str]) -> list[str]:
        labels_of(terms)
        return sorted(terms)

    def wanted(self) -> VolumeFilter:
        """Say it to the domain."""
        return VolumeFilter(self.state, self.name, labels_of(self.label))


class JobQuery(PageQuery):
    """Which jobs to list."""

    status: Absent[JobStatus] = None
    kind: Absent[JobKind] = None
    volume_id: Absent[UUID] = None
    parent_id: Absent[UUID] = Field(None, description="Parts of a bulk job are shown only when it is named here.")

    def wanted(self) -> JobFilter:
        """Say it to the domain."""
        return JobFilter(self.status, self.kind, self.volume_id, self.parent_id)


def _plain(autogrow: Autogrow | None) -> dict[str, Any] | None:
    return None if autogrow is None else autogrow.model_dump(exclude_none=True)
