"""Bodies of keys."""

from datetime import datetime, timedelta
from typing import Annotated, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict

from api.schemas.base import Omittable, RequestBody
from domain.access.model import MAX_NAME, ApiKey, Role
from domain.access.service import CreatedKey, NewKey

_EXAMPLE: Final[JsonDict] = {
    "id": "01a0b1c2-0000-7000-8000-000000000006",
    "public_id": "4jXu0bT2Qz",
    "name": "backup",
    "role": "operator",
    "project_id": "00000000-0000-7000-8000-000000000001",
    "created_by": "admin",
    "created_at": "2026-01-31T23:59:59.123456Z",
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": None,
}

KeyName = Annotated[
    str,
    StringConstraints(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._@-]{{0,{MAX_NAME - 1}}}$", max_length=MAX_NAME),
    Field(description="Who uses the key; shown as `created_by` of what they do.", examples=["backup"]),
]


Days = Annotated[int, Field(ge=1, le=3650, strict=True)]


class KeyIn(RequestBody):
    """A new key."""

    name: KeyName
    role: Role
    expires_in_days: Annotated[Omittable[Days], Field(description="It never expires without.")] = None

    def new_key(self) -> NewKey:
        """Convert to the domain request."""
        days = self.expires_in_days
        return NewKey(self.name, self.role, None if days is None else timedelta(days=days))


class RotateIn(RequestBody):
    """How a key is replaced."""

    overlap_hours: Annotated[
        int, Field(ge=0, le=720, strict=True, description="For how long the old key stays valid.")
    ] = 24


class KeyOut(BaseModel):
    """A key, without its text."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [_EXAMPLE]})

    id: UUID
    public_id: str = Field(description="The part of the key's text after `cst_`.")
    name: str
    role: Role
    project_id: UUID
    created_by: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="Within a minute.")

    @classmethod
    def from_row(cls, key: ApiKey) -> "KeyOut":
        """Render a key."""
        return cls.model_validate(key)


class CreatedKeyOut(KeyOut):
    """A new key with its text, which is not stored and never shown again."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [_EXAMPLE | {"key": "cst_4jXu0bT2Qz_EXAMPLE", "created_by": "admin"}]}
    )

    key: str = Field(description="Send it as `Authorization: Bearer cst_...`. It is shown only here.")

    @classmethod
    def from_created(cls, created: CreatedKey) -> "CreatedKeyOut":
        """Render a new key."""
        return cls(**KeyOut.from_row(created.key).model_dump(), key=created.text)
