"""Bulk jobs: the selection of volumes, bodies that expand or snapshot many, the plan of a dry run, and the ledger."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from api.problems import GROWTH_REQUIRED
from api.schemas.base import EXAMPLE_TIME, EXAMPLE_VOLUME_ID, Omittable, RequestBody, constraint, exactly_one
from api.schemas.fields import (
    MAX_CONCURRENT,
    NAME_PATTERN,
    BackendName,
    BulkPercent,
    CooldownSeconds,
    Labels,
    Size,
    SizeLimit,
    UsageAbove,
    UtcDatetime,
    VolumeIds,
)
from api.schemas.pagination import PageQuery
from api.schemas.volumes import GROWTH_CHOICES, UP_TO, USED, GrowthFields
from domain.bulk.expand import (
    AUTOGROW,
    DEFAULT_STEP,
    POLICY_FIELDS,
    BulkExpandRequest,
    GrowthPolicy,
    Policy,
    VolumePolicies,
)
from domain.bulk.model import Item, ItemStatus
from domain.bulk.preview import Plan
from domain.bulk.requests import DEFAULT_CONCURRENT, Selection
from domain.bulk.snapshot import MAX_PREFIX, BulkSnapshotRequest
from domain.snapshots.retention import MAX_KEPT
from domain.volumes.model import GROWTH_MEMBERS

PREVIEW_EXAMPLE: Final[dict[str, Any]] = {
    "volume_id": EXAMPLE_VOLUME_ID,
    "name": "postgres-1",
    "from_size": 10737418240,
    "to_size": 12884901888,
    "code": None,
    "used": 9663676416,
    "used_at": EXAMPLE_TIME,
    "detail": None,
}
ITEM_EXAMPLE: Final[dict[str, Any]] = {
    "volume_id": EXAMPLE_VOLUME_ID,
    "volume_name": "postgres-1",
    "status": "failed",
    "code": "storage-full",
    "detail": "There is no room left on the backend.",
    "from_size": 10737418240,
    "to_size": 12884901888,
    "used": 9663676416,
    "snapshot_id": None,
}

_BULK_GROWTH_CHOICES: Final = f"{GROWTH_CHOICES}; or `policy` (`{AUTOGROW}`: each volume's own policy)"
_INODES_ABOVE: Final = (
    "Only volumes of whose file system more than this percentage of the inodes is used; with `usage_above`, either."
)
_POLICY_ONLY: Final[dict[str, Any]] = {
    "required": ["policy"],
    "not": {"anyOf": [{"required": [name]} for name in POLICY_FIELDS]},
}
#: Forms are filled with them: each is limited to some volumes, so that nobody grows everything by sending it.
_EXPAND_EXAMPLES: Final[tuple[dict[str, Any], ...]] = (
    {"percent": 20, "usage_above": 80, "up_to": "1TiB", "labels": {"team": "search"}, "max_concurrent": 10},
    {"policy": AUTOGROW, "labels": {"team": "search"}},
)
_EXPAND_CONSTRAINT: Final = constraint({"oneOf": [*exactly_one(*GROWTH_MEMBERS)["oneOf"], _POLICY_ONLY]})
_KEEP: Final[dict[str, Any]] = {"ge": 1, "le": MAX_KEPT, "strict": True}


class SelectionIn(RequestBody):
    """Which volumes, and how many at once."""

    ids: Annotated[
        Omittable[VolumeIds], Field(description="Only these volumes. An unknown id becomes an item of the ledger.")
    ] = None
    labels: Annotated[Labels, Field(description="Only volumes with all of these labels.")] = Field(default_factory=dict)
    backend: Annotated[Omittable[BackendName], Field(description="Only volumes on this backend.")] = None
    require_any: Annotated[bool, Field(strict=True, description="Fail if no volume is selected.")] = False
    max_concurrent: Annotated[
        int,
        Field(ge=1, le=MAX_CONCURRENT, strict=True, description="Maximum number of volumes at once, over all workers."),
    ] = DEFAULT_CONCURRENT

    def selection(self) -> Selection:
        """Convert to the domain selection."""
        ids = None if self.ids is None else tuple(self.ids)
        return Selection(ids, self.labels, self.backend, self.require_any)


class _PolicyField(RequestBody):
    policy: Annotated[
        Omittable[Literal["autogrow"]],
        Field(description="`autogrow`: apply the policy of each volume; volumes without one are skipped."),
    ] = None


# Pydantic collects fields from the last base to the first: `policy` is validated before the fields that exclude it.
class BulkExpandFields(GrowthFields, SelectionIn, _PolicyField):
    """Which volumes to expand, by how much, and how many at once."""

    model_config = ConfigDict(json_schema_extra={**_EXPAND_CONSTRAINT, "examples": [*_EXPAND_EXAMPLES]})

    percent: Omittable[BulkPercent] = None
    step: Size = Field(DEFAULT_STEP, description="New sizes are rounded up to a multiple of it.")
    up_to: Annotated[Omittable[SizeLimit], Field(description=UP_TO)] = None
    usage_above: Annotated[
        Omittable[UsageAbove], Field(description="Only volumes of which more than this percentage is used.")
    ] = None
    inodes_above: Annotated[Omittable[UsageAbove], Field(description=_INODES_ABOVE)] = None
    cooldown_seconds: Omittable[CooldownSeconds] = None

    @field_validator(*POLICY_FIELDS)
    @classmethod
    def _without_policy(cls, value: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("policy") is not None:
            raise ValueError("cannot be combined with `policy`, which takes it from each volume's own policy")
        return value

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        return self if self.policy is not None else self.require_growth(_BULK_GROWTH_CHOICES)

    def expansion(self) -> BulkExpandRequest:
        """Convert to the domain request."""
        return BulkExpandRequest(self._policy(), selection=self.selection(), max_concurrent=self.max_concurrent)

    def _policy(self) -> Policy:
        if self.policy is not None:
            return VolumePolicies()
        return GrowthPolicy(
            to=self.to,
            by=self.by,
            percent=self.percent,
            step=self.step,
            up_to=self.up_to,
            usage_above=self.usage_above,
            inodes_above=self.inodes_above,
            cooldown_seconds=self.cooldown_seconds,
        )


class BulkExpandIn(BulkExpandFields):
    """Which volumes to expand, by how much, and how many at once; or a dry run."""

    model_config = ConfigDict(
        json_schema_extra={
            **_EXPAND_CONSTRAINT,
            "examples": [one | {"dry_run": True} for one in _EXPAND_EXAMPLES],
        }
    )

    dry_run: Annotated[bool, Field(strict=True, description="Return the plan, change nothing.")] = False


async def _require_growth_body(request: Request) -> None:
    """Reject an empty body like ``{}``, with the choices; FastAPI would only report that the body is missing."""
    if not await request.body():
        raise RequestValidationError([{"type": GROWTH_REQUIRED.code, "loc": ("body",), "msg": _BULK_GROWTH_CHOICES}])


RequireGrowthBody = Depends(_require_growth_body)


class BulkSnapshotIn(SelectionIn):
    """Which volumes to snapshot, how many at once, and the names of the snapshots."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "before-the-upgrade", "labels": {"team": "search"}}]}
    )

    name: Annotated[
        str,
        StringConstraints(pattern=NAME_PATTERN, max_length=MAX_PREFIX),
        Field(
            description="Prefix of the names; the time is appended: `before-the-upgrade-20260131T235959123Z`.",
            examples=["before-the-upgrade"],
        ),
    ]

    def snapshots(self) -> BulkSnapshotRequest:
        """Convert to the domain request."""
        return BulkSnapshotRequest(self.name, selection=self.selection(), max_concurrent=self.max_concurrent)


class ScheduledSnapshotIn(BulkSnapshotIn):
    """A bulk snapshot of a schedule, which may delete older snapshots that it took."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "nightly", "keep_last": 7}]})

    keep_last: Annotated[
        Omittable[Annotated[int, Field(**_KEEP)]],
        Field(description="Keep this number of the schedule's snapshots per volume. With neither rule, keep all."),
    ] = None
    keep_days: Annotated[
        Omittable[Annotated[int, Field(**_KEEP)]],
        Field(description="Keep the schedule's snapshots for this many days. With `keep_last`, either rule keeps."),
    ] = None


class PreviewOut(BaseModel):
    """The planned change of one volume. Sizes are in bytes."""

    model_config = ConfigDict(from_attributes=True)

    volume_id: UUID
    name: str
    from_size: int
    to_size: int | None = Field(description="Null if the volume would not grow; `code` is the reason.")
    code: str | None
    used: int | None = Field(description=USED)
    used_at: UtcDatetime | None = Field(
        description="Null if it has not been measured yet; with `used` null: its backend could not tell."
    )
    detail: str | None = Field(description="Why the usage is unknown, for the code `usage-unknown`.")


class PlanOut(BaseModel):
    """The plan of a bulk expansion, from the latest measurements. Nothing has been measured or changed."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "total": 1,
                    "grows": 1,
                    "bytes": 2147483648,
                    "measured_at": EXAMPLE_TIME,
                    "unmeasured": 0,
                    "items": [PREVIEW_EXAMPLE],
                    "truncated": False,
                }
            ]
        },
    )

    total: int = Field(description="Number of selected volumes.")
    grows: int = Field(description="Number of volumes that would grow.")
    bytes: int = Field(description="Total growth in bytes.")
    measured_at: UtcDatetime | None = Field(description="Time of the oldest measurement; null if there is none.")
    unmeasured: int = Field(
        description="Number of volumes whose growth depends on a measurement that has not been made yet."
        " The expansion itself measures every volume first."
    )
    items: list[PreviewOut] = Field(description="The first thousand volumes, by id.")
    truncated: bool = Field(default=False, description="Whether more volumes are selected than listed.")

    @classmethod
    def from_plan(cls, plan: Plan) -> Self:
        """Render a plan."""
        return cls.model_validate(plan).model_copy(update={"truncated": plan.total > len(plan.items)})


class ItemOut(BaseModel):
    """The result of one volume in a bulk job; kept after the volume is deleted. Sizes are in bytes."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [ITEM_EXAMPLE]})

    volume_id: UUID
    volume_name: str | None = Field(description="The present name of the volume; null if it has been deleted.")
    status: ItemStatus
    code: str | None = Field(
        description="Reason of the status, such as `expanded`, `snapshotted`, `volume-gone` or `storage-full`."
    )
    detail: str | None
    from_size: int | None
    to_size: int | None = Field(description="Target size, recorded before the growth begins.")
    used: int | None = Field(description="Bytes in use, if this job has measured them.")
    snapshot_id: UUID | None = Field(description="The snapshot that was taken; it may have been deleted since.")

    @classmethod
    def of(cls, item: Item, names: Mapping[UUID, str]) -> Self:
        """Render an item; ``names`` has those of volumes."""
        columns = {name: getattr(item, name) for name in cls.model_fields if name != "volume_name"}
        return cls(volume_name=names.get(item.volume_id), **columns)


class ItemQuery(PageQuery):
    """Filters of a list of items."""

    status: Omittable[ItemStatus] = None
