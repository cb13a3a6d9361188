"""Members that may be left out: None inside, and never said to be null in the document."""

from typing import Annotated, TypeVar

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Value = TypeVar("Value")


class _NullUnsaid:
    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(schema)
        choices = [choice for choice in described.pop("anyOf", ()) if choice != {"type": "null"}]
        return described | (choices[0] if len(choices) == 1 else {"anyOf": choices})


Absent = Annotated[Value | None, _NullUnsaid()]


def without_null_defaults(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Take ``default: null`` out of a model's description."""
    for member in schema.get("properties", {}).values():
        if member.get("default", ...) is None:
            del member["default"]
    return schema
