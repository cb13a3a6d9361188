"""What all bodies share: the base class of request bodies, members that may be absent, and example values."""

from collections.abc import Collection
from typing import Annotated, Any, Final, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

Value = TypeVar("Value")

#: A header that may be absent, or sent several times (a list) or once with commas: in the document it is a string.
TextHeader = Annotated[Value | None, WithJsonSchema({"type": "string"})]

EXAMPLE_VOLUME_ID: Final = "01a0b1c2-0000-7000-8000-000000000001"
EXAMPLE_JOB_ID: Final = "01a0b1c2-0000-7000-8000-000000000002"
EXAMPLE_SNAPSHOT_ID: Final = "01a0b1c2-0000-7000-8000-000000000003"
EXAMPLE_SCHEDULE_ID: Final = "01a0b1c2-0000-7000-8000-000000000004"
EXAMPLE_RUN_ID: Final = "01a0b1c2-0000-7000-8000-000000000005"
EXAMPLE_TIME: Final = "2026-01-31T23:59:59.123456Z"


class _WithoutNull:
    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(schema)
        choices = [choice for choice in described.pop("anyOf", ()) if choice != {"type": "null"}]
        return described | (choices[0] if len(choices) == 1 else {"anyOf": choices})


def _reject_null(value: Value | None) -> Value:
    if value is None:
        raise ValueError("cannot be null; it can be left out")
    return value


#: A member, parameter or header that may be absent: `None` in Python, never `null` in JSON or in the OpenAPI schema.
#: A client that sends `null` is rejected, because its meaning would be a guess. The default is not validated.
Omittable = Annotated[Value | None, _WithoutNull(), AfterValidator(_reject_null)]


#: Maximum number of members of a body: several times as many as the largest body has.
MAX_MEMBERS: Final = 64


def refuse_more(value: Value, limit: int) -> Value:
    """Refuse a list or an object with more than ``limit`` elements, and return any other value.

    To be called before the elements are validated: Pydantic looks at each of them, and reports each that is wrong,
    which takes a second for a megabyte of nonsense.

    Raises:
        PydanticCustomError: it has more.
    """
    if isinstance(value, list | dict) and len(value) > limit:
        message = "has {count} elements, more than the maximum of {limit}"
        raise PydanticCustomError("too_long", message, {"count": len(value), "limit": limit})
    return value


def constraint(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return a condition on the members of a body, for its JSON Schema.

    It is negated twice, because client generators take a plain ``oneOf`` or ``anyOf`` for a union of untyped bodies.
    """
    return {"not": {"not": schema}}


def exactly_one(*names: str) -> JsonSchemaValue:
    """Return the condition that exactly one of several members is given."""
    return {"oneOf": [{"required": [name]} for name in names]}


def refuse_second(info: ValidationInfo, *names: str) -> None:
    """Refuse the member that is being validated if one of ``names`` was given before it.

    Raises:
        ValueError: names the first of them.
    """
    position = names.index(info.field_name) if info.field_name in names else len(names)
    if given := [name for name in names[:position] if info.data.get(name) is not None]:
        choices = ", ".join(f"`{name}`" for name in names)
        raise ValueError(f"cannot be combined with `{given[0]}`: give exactly one of {choices}")


class RequestBody(BaseModel):
    """Base of request bodies. Unknown members are rejected, so that a misspelt one does not go unnoticed."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _not_too_many(cls, value: Value) -> Value:
        return refuse_more(value, MAX_MEMBERS)

    def columns(self, names: Collection[str]) -> dict[str, Any]:
        """Return members as values of the columns of the same names; a policy without its absent members."""
        members = {name: getattr(self, name) for name in names}
        return {
            name: value.model_dump(exclude_none=True) if isinstance(value, BaseModel) else value
            for name, value in members.items()
        }

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Remove every ``default: null`` from the schema."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for member in schema.get("properties", {}).values():
            if member.get("default", ...) is None:
                del member["default"]
        return schema
