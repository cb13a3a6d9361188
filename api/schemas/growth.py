"""How clients say how much larger: one volume, or many at once."""

from typing import Annotated, Any, Literal, Self

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ByteSize, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from api.problems import GROWTH_REQUIRED
from api.schemas.base import Body
from api.schemas.fields import BulkPercent, Percent, Size, UsageAbove
from api.schemas.omittable import Given
from api.schemas.selection import SelectionIn
from domain.bulk.expand.policy import (
    AUTOGROW,
    DEFAULT_STEP,
    GROWTH,
    BulkExpandRequest,
    GrowthPolicy,
    Policy,
    VolumePolicies,
)
from domain.volumes.growth import Growth

_CHOICES = "say how much: `to` a size, `by` an amount, or by a `percent` of the present size"
_BULK_CHOICES = f"{_CHOICES}; or `policy`: `{AUTOGROW}`, each volume as its own policy says"
_EXACTLY_ONE: dict[str, Any] = {"oneOf": [{"required": ["to"]}, {"required": ["by"]}, {"required": ["percent"]}]}
_POLICY_ONLY: dict[str, Any] = {
    "required": ["policy"],
    "not": {"anyOf": [{"required": [name]} for name in GROWTH]},
}


class _GrowthFields(Body):
    to: Given[Size] = None
    by: Given[Size] = None
    percent: Given[Percent] = None

    @field_validator("by", "percent")
    @classmethod
    def _exactly_one(cls, body: float | None, info: ValidationInfo) -> float | None:
        if others := [name for name in ("to", "by") if info.data.get(name) is not None]:
            raise ValueError(f"cannot be combined with `{others[0]}`: say exactly one of `to`, `by` and `percent`")
        return body

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        return self._chosen(_CHOICES)

    def _chosen(self, choices: str) -> Self:
        if self.to is None and self.by is None and self.percent is None:
            raise PydanticCustomError(GROWTH_REQUIRED.code, choices)
        return self


class GrowthIn(_GrowthFields):
    """How much larger: exactly one way to say it."""

    model_config = ConfigDict(
        json_schema_extra=_EXACTLY_ONE | {"examples": [{"to": "20GiB"}, {"by": "10GiB"}, {"percent": 25}]}
    )

    def growth(self) -> Growth:
        """Say it to the domain."""
        return Growth(to=self.to, by=self.by, percent=self.percent)


class _PolicyField(Body):
    policy: Annotated[
        Given[Literal["autogrow"]],
        Field(description="`autogrow`: each volume as its own policy says; those without one stay as they are."),
    ] = None


# Pydantic reads the last of the bases first, so that each wish sees the policy.
class BulkExpandFields(_GrowthFields, SelectionIn, _PolicyField):
    """Which volumes, how much larger each of them, and how many at once."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [*_EXACTLY_ONE["oneOf"], _POLICY_ONLY],
            "examples": [
                {"percent": 20, "usage_above": 80, "up_to": "1TiB", "max_concurrent": 10},
                {"policy": AUTOGROW, "labels": {"team": "search"}},
            ],
        }
    )

    percent: Given[BulkPercent] = None
    step: Size = Field(ByteSize(DEFAULT_STEP), description="New sizes are whole multiples of it.")
    up_to: Annotated[Given[Size], Field(description="No volume grows beyond it.")] = None
    usage_above: Annotated[
        Given[UsageAbove], Field(description="Only volumes of which more than so many percent are in use.")
    ] = None

    @field_validator(*GROWTH)
    @classmethod
    def _without_policy(cls, body: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("policy") is not None:
            raise ValueError("cannot be combined with `policy`, by which each volume's own policy says it")
        return body

    @model_validator(mode="after")
    def _not_nothing(self) -> Self:
        return self if self.policy is not None else self._chosen(_BULK_CHOICES)

    def expansion(self) -> BulkExpandRequest:
        """Say it to the domain."""
        return BulkExpandRequest(self._policy(), self.selection(), self.max_concurrent)

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
        )


class BulkExpandIn(BulkExpandFields):
    """Which volumes, how much larger each of them, and how many at once; or only what would be done."""

    dry_run: Annotated[bool, Field(strict=True, description="Only say what would be done.")] = False


async def _given_fields(request: Request) -> None:
    """Tell whoever says nothing at all the choices, as whoever says ``{}``; FastAPI would only miss the body."""
    if not await request.body():
        raise RequestValidationError([{"type": GROWTH_REQUIRED.code, "loc": ("body",), "msg": _BULK_CHOICES}])


GrowthBody = Depends(_given_fields)
