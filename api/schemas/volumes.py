"""Volumes: bodies that create, change and expand one, list filters, and the response."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from api.problems import GROWTH_REQUIRED
from api.schemas.base import (
    EXAMPLE_TIME,
    EXAMPLE_VOLUME_ID,
    Omittable,
    RequestBody,
    constraint,
    exactly_one,
    refuse_more,
    refuse_second,
)
from api.schemas.fields import (
    MAX_LABELS,
    MAX_QUERY_IDS,
    AllowTorn,
    BackendName,
    CooldownSeconds,
    Filesystem,
    IdPrefix,
    Labels,
    LabelTerm,
    Name,
    Percent,
    Size,
    SizeLimit,
    UsageAbove,
    UtcDatetime,
    parse_label_terms,
)
from api.schemas.jobs import FailureOut
from api.schemas.pagination import PageQuery
from domain.jobs.model import Job
from domain.operations import VolumeState
from domain.volumes.model import GROWTH_MEMBERS, Growth, Volume
from domain.volumes.repository import VolumeFilter
from domain.volumes.service import NewVolume

GROWTH_CHOICES: Final = "give one of `to` (a size), `by` (an amount) and `percent` (of the present size)"
USED: Final = (
    "Bytes in use, measured at `used_at`; null if that is unknown. Of a volume with a file system: those that are not"
    " free in it, as a node has reported, and what is not part of it."
)
_AS_REPORTED: Final = "as a node has last reported; null if none has."
UP_TO: Final = "Upper limit of the size, never exceeded: rounded down to a multiple of 4096 bytes."
INODES_ABOVE: Final = "Grow, too, if more than this percentage of the inodes of its file system is used."
#: The members that say which bytes a new volume starts with.
SOURCES: Final = ("from_snapshot", "from_volume")
#: A policy grows by an amount or a percentage, never to a size.
AUTOGROW_MEMBERS: Final = GROWTH_MEMBERS[1:]
AUTOGROW_EXAMPLE: Final[dict[str, Any]] = {"usage_above": 80, "percent": 20, "up_to": "1TiB"}
VOLUME_EXAMPLE: Final[dict[str, Any]] = {
    "id": EXAMPLE_VOLUME_ID,
    "name": "postgres-1",
    "backend": "local",
    "state": "available",
    "size": 10737418240,
    "used": 4096,
    "used_at": EXAMPLE_TIME,
    "filesystem": "ext4",
    "filesystem_size": 10464022528,
    "filesystem_grown_to": 10737418240,
    "filesystem_used": 24576,
    "inodes": 655360,
    "inodes_used": 11,
    "filesystem_error": None,
    "source": None,
    "version": 2,
    "job_id": None,
    "last_error": None,
    "last_job_id": None,
    "labels": {"team": "search"},
    "autogrow": {"usage_above": 80, "percent": 20.0, "up_to": 1099511627776},
    "path": f"/srv/volumes/{EXAMPLE_VOLUME_ID}/data",
    "created_at": EXAMPLE_TIME,
    "updated_at": EXAMPLE_TIME,
}


class AutogrowIn(RequestBody):
    """Autogrow policy: when a bulk expansion may grow a volume, by how much, and up to which size."""

    model_config = ConfigDict(
        json_schema_extra={
            **constraint(exactly_one(*AUTOGROW_MEMBERS)),
            "examples": [
                AUTOGROW_EXAMPLE,
                {"usage_above": 90, "by": "10GiB", "up_to": "500GiB"},
                AUTOGROW_EXAMPLE | {"inodes_above": 90, "cooldown_seconds": 3600},
            ],
        }
    )

    usage_above: Annotated[UsageAbove, Field(description="Grow only if more than this percentage of the size is used.")]
    by: Annotated[Omittable[Size], Field(description="Rounded up to a whole MiB, like the result of `percent`.")] = None
    percent: Omittable[Percent] = None
    up_to: Annotated[SizeLimit, Field(description=UP_TO)]
    inodes_above: Annotated[Omittable[UsageAbove], Field(description=INODES_ABOVE)] = None
    cooldown_seconds: Omittable[CooldownSeconds] = None

    @field_validator(*AUTOGROW_MEMBERS)
    @classmethod
    def _exactly_one(cls, value: float, info: ValidationInfo) -> float:
        refuse_second(info, *AUTOGROW_MEMBERS)
        return value

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if self.by is None and self.percent is None:
            raise ValueError("give one of `by` (an amount) and `percent` (of the present size)")
        return self


class VolumeIn(RequestBody):
    """A volume to create."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "postgres-1", "size": "10GiB", "labels": {"team": "search"}},
                {"name": "postgres-2", "size": "10GiB", "autogrow": AUTOGROW_EXAMPLE},
                {"name": "postgres-3", "size": "10GiB", "filesystem": "ext4"},
            ],
            **constraint(
                {
                    "anyOf": [
                        {"required": ["size"], "properties": {"size": {"not": {"type": "null"}}}},
                        {"required": ["from_snapshot"]},
                        {"required": ["from_volume"]},
                    ]
                }
            ),
        }
    )

    name: Name
    from_snapshot: Annotated[Omittable[UUID], Field(description="Start with the bytes of this snapshot.")] = None
    from_volume: Annotated[
        Omittable[UUID], Field(description="Start with the bytes of this volume; not together with `from_snapshot`.")
    ] = None
    allow_torn: Annotated[AllowTorn, Field(description="With `from_volume`, as for a snapshot.")] = False
    size: Size | None = Field(
        None,
        validate_default=True,
        description="Rounded up to a multiple of 4096 bytes. May be null or absent with `from_snapshot` or"
        " `from_volume`: then it is the size of that.",
    )
    backend: BackendName | None = Field(
        None, description="Null means the default backend; with `from_snapshot` or `from_volume`, the backend of that."
    )
    filesystem: Filesystem | None = Field(
        None,
        description="The file system that is made in it; null means none. A clone has that of its source, and may name"
        " no other.",
    )
    labels: Labels = Field(default_factory=dict)
    autogrow: AutogrowIn | None = Field(None, description="Used by bulk expansions with the policy `autogrow`.")

    @field_validator(*SOURCES)
    @classmethod
    def _one_source(cls, value: UUID, info: ValidationInfo) -> UUID:
        refuse_second(info, *SOURCES)
        return value

    @field_validator("size")
    @classmethod
    def _size_or_source(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is None and all(info.data.get(name) is None for name in SOURCES):
            raise PydanticCustomError("missing", "Field required")
        return size

    def new_volume(self) -> NewVolume:
        """Convert to the domain request."""
        chosen = type(self).model_fields.keys() - {"name", *SOURCES, "allow_torn", "size", "backend"}
        return NewVolume(self.name, self.size, self.backend, self.columns(chosen))


class VolumePatch(RequestBody):
    """Changes to a volume; an absent member is left as it is."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"labels": {"team": "search", "tier": "gold"}},
                {"autogrow": AUTOGROW_EXAMPLE},
                {"autogrow": None},
            ]
        }
    )

    name: Omittable[Name] = None
    labels: Omittable[Labels] = None
    autogrow: AutogrowIn | None = Field(None, description="Null removes the policy.")

    def changes(self) -> dict[str, Any]:
        """Return the columns that the client changes."""
        return self.columns(self.model_fields_set)


class GrowthFields(RequestBody):
    """How much to grow, shared by expansions of one and of many volumes: new sizes are multiples of 4096 bytes."""

    to: Omittable[Size] = None
    by: Omittable[Size] = None
    percent: Omittable[Percent] = None

    @field_validator(*GROWTH_MEMBERS)
    @classmethod
    def _exactly_one(cls, value: float | None, info: ValidationInfo) -> float | None:
        refuse_second(info, *GROWTH_MEMBERS)
        return value

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        return self.require_growth(GROWTH_CHOICES)

    def require_growth(self, choices: str) -> Self:
        """Return self if a growth is given; otherwise fail with ``choices`` as the message."""
        if all(getattr(self, name) is None for name in GROWTH_MEMBERS):
            raise PydanticCustomError(GROWTH_REQUIRED.code, choices)
        return self


class GrowthIn(GrowthFields):
    """The growth of one volume: exactly one of `to`, `by` and `percent`."""

    model_config = ConfigDict(
        json_schema_extra={
            **constraint(exactly_one(*GROWTH_MEMBERS)),
            "examples": [{"to": "20GiB"}, {"by": "10GiB"}, {"percent": 25}],
        }
    )

    def growth(self) -> Growth:
        """Convert to the domain request."""
        return Growth(to=self.to, by=self.by, percent=self.percent)


class VolumeQuery(PageQuery):
    """Filters of a list of volumes."""

    state: Omittable[VolumeState] = None
    name: Omittable[Name] = None
    label: Annotated[
        list[LabelTerm],
        BeforeValidator(partial(refuse_more, limit=MAX_LABELS)),
        Field(description="`key:value`; a volume must have all of them.", examples=[["team:search"]]),
    ] = Field(default_factory=list)

    id_prefix: Omittable[IdPrefix] = None
    id: Annotated[
        list[UUID],
        BeforeValidator(partial(refuse_more, limit=MAX_QUERY_IDS)),
        Field(description="Only these volumes."),
    ] = Field(default_factory=list)

    @field_validator("label")
    @classmethod
    def _distinct_and_sorted(cls, terms: Sequence[str]) -> list[str]:
        parse_label_terms(terms)
        return sorted(terms)  # a cursor is bound to the filters, not to their order

    def filters(self) -> VolumeFilter:
        """Convert to the domain filter."""
        return VolumeFilter(self.state, self.name, parse_label_terms(self.label), id_prefix=self.id_prefix, ids=self.id)


class SnapshotSource(BaseModel):
    """The snapshot that a volume is a clone of."""

    snapshot_id: UUID


class VolumeSource(BaseModel):
    """The volume that a volume is a clone of."""

    volume_id: UUID


class VolumeOut(BaseModel):
    """One volume. Sizes are in bytes."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [VOLUME_EXAMPLE]})

    id: UUID
    name: str
    backend: str
    state: VolumeState
    size: int
    used: int | None = Field(description=USED)
    used_at: UtcDatetime | None = Field(description="Null if it has not been measured yet.")
    filesystem: str | None = Field(None, description="The file system that it has; null if Cistern made none.")
    filesystem_size: int | None = Field(
        None, description=f"Bytes of the file system, as `df` shows them, {_AS_REPORTED} Less than `size`."
    )
    filesystem_used: int | None = Field(
        None, description=f"Bytes in use of the file system, as `df` shows them, {_AS_REPORTED}"
    )
    inodes: int | None = Field(None, description=f"Inodes of the file system, {_AS_REPORTED}")
    inodes_used: int | None = Field(None, description=f"Those in use, {_AS_REPORTED}")
    filesystem_grown_to: int | None = Field(None, description="The size of the volume that the file system fills.")
    filesystem_error: str | None = Field(
        None,
        description="Why the file system is smaller than the volume: it could not be grown. Expanding the volume to its"
        " present size tries it again.",
    )
    version: int = Field(description="Incremented when an operation is accepted and when it ends.")
    job_id: UUID | None = Field(description="The job that holds the volume at the moment.")
    last_error: FailureOut | None = Field(None, description="Of a volume in the state `error`: why it is.")
    last_job_id: UUID | None = Field(None, description="Of a volume in the state `error`: the job that has left it so.")
    labels: Labels
    autogrow: dict[str, Any] | None = Field(
        description="When a bulk expansion with the policy `autogrow` grows it, by how much, and up to which size."
    )
    path: str | None = Field(None, description="Path of its bytes, for backends that have paths.")
    source: SnapshotSource | VolumeSource | None = Field(
        None, description="The snapshot or volume with whose bytes it started; it may be gone since."
    )
    created_at: UtcDatetime
    updated_at: UtcDatetime

    @classmethod
    def of(cls, volume: Volume, path: str | None, failed: Job | None) -> Self:
        """Render a row; ``failed`` is the job that has left it in the state ``error``."""
        found: dict[str, Any] = {"path": path, "source": _source_of(volume)}
        if failed is not None:
            error = None if failed.error is None else FailureOut.model_validate(failed.error)
            found |= {"last_job_id": failed.id, "last_error": error}
        return cls.model_validate(volume).model_copy(update=found)


def _source_of(volume: Volume) -> SnapshotSource | VolumeSource | None:
    if volume.source_snapshot_id is not None:
        return SnapshotSource(snapshot_id=volume.source_snapshot_id)
    return None if volume.source_volume_id is None else VolumeSource(volume_id=volume.source_volume_id)
