"""What bulk jobs look like on the wire: an expansion's plan before it is asked for, any one's ledger afterwards."""

from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.fields import Moment
from api.schemas.omittable import Omittable
from api.schemas.pagination import PageQuery
from domain.bulk.expand.service import Plan
from domain.bulk.states import ItemStatus

_VOLUME_ID = "01a0b1c2-0000-7000-8000-000000000001"
_TIME = "2026-01-31T23:59:59.123456Z"

PREVIEW_EXAMPLE: dict[str, Any] = {
    "volume_id": _VOLUME_ID,
    "name": "postgres-1",
    "from_size": 10737418240,
    "to_size": 12884901888,
    "code": None,
    "used": 9663676416,
    "used_at": _TIME,
}
ITEM_EXAMPLE: dict[str, Any] = {
    "volume_id": _VOLUME_ID,
    "status": "failed",
    "code": "storage-full",
    "detail": "There is no room left on the backend.",
    "from_size": 10737418240,
    "to_size": 12884901888,
    "used": 9663676416,
    "snapshot_id": None,
}


class PreviewOut(BaseModel):
    """What would be done with one volume. Sizes are in bytes."""

    model_config = ConfigDict(from_attributes=True)

    volume_id: UUID
    name: str
    from_size: int
    to_size: int | None = Field(description="Null if it would not grow; `code` says why.")
    code: str | None
    used: int | None = Field(description="Allocated bytes, as measured at `used_at`.")
    used_at: Moment | None


class PlanOut(BaseModel):
    """What a bulk expansion would do, from the last measurements. Nothing was touched."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "total": 1,
                    "grows": 1,
                    "bytes": 2147483648,
                    "measured_at": _TIME,
                    "items": [PREVIEW_EXAMPLE],
                    "truncated": False,
                }
            ]
        },
    )

    total: int = Field(description="How many volumes are selected.")
    grows: int = Field(description="How many of them would grow.")
    bytes: int = Field(description="By how many bytes in all.")
    measured_at: Moment | None = Field(description="The oldest of the measurements.")
    items: list[PreviewOut] = Field(description="The first thousand, by id.")
    truncated: bool = Field(default=False, description="Whether there are more than these.")

    @classmethod
    def from_plan(cls, plan: Plan) -> Self:
        """Show a plan."""
        shown = cls.model_validate(plan)
        return shown.model_copy(update={"truncated": plan.total > len(plan.items)})


class ItemOut(BaseModel):
    """What became of one volume in a bulk job; it is kept when the volume is gone. Sizes are in bytes."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [ITEM_EXAMPLE]})

    volume_id: UUID
    status: ItemStatus
    code: str | None = Field(
        description="Why it ended so, such as `expanded`, `snapshotted`, `volume-gone` or `storage-full`."
    )
    detail: str | None
    from_size: int | None
    to_size: int | None = Field(description="What it was to grow to; written down before it began to.")
    used: int | None = Field(description="Allocated bytes, if that was measured.")
    snapshot_id: UUID | None = Field(description="The snapshot that was taken; it may have been deleted since.")


class ItemQuery(PageQuery):
    """Which items to list."""

    status: Omittable[ItemStatus] = None
