"""What the bodies of all requests have in common."""

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from api.schemas.omittable import without_null_defaults


class Body(BaseModel):
    """A body. A member that is not described is refused, so that a misspelt one never goes unnoticed."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return without_null_defaults(handler.resolve_ref_schema(handler(core_schema)))
