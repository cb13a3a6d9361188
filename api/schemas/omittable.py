"""Members that may be left out: None inside, and never said to be null in the document."""

from typing import Annotated, Final, TypeVar

from pydantic import AfterValidator, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Value = TypeVar("Value")


class _NoNull:
    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(schema)
        choices = [choice for choice in described.pop("anyOf", ()) if choice != {"type": "null"}]
        return described | (choices[0] if len(choices) == 1 else {"anyOf": choices})


Omittable = Annotated[Value | None, _NoNull()]


def _not_null(value: Value | None) -> Value:
    if value is None:
        raise ValueError("cannot be null; it can be left out")
    return value


#: The same for members of a body, where a client can say null, and then means something that we cannot know.
Given = Annotated[Omittable[Value], AfterValidator(_not_null)]

#: A header that may come several times, or once with commas: for the reader it is a text.
HEADER_TEXT: Final = WithJsonSchema({"type": "string"})


def without_null_defaults(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Take ``default: null`` out of a model's description."""
    for member in schema.get("properties", {}).values():
        if member.get("default", ...) is None:
            del member["default"]
    return schema
