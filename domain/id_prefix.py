"""Ids by their beginning, as people type them. The rows of a prefix are a range of the primary key."""

from uuid import UUID

from sqlalchemy import ColumnElement, false
from sqlalchemy.orm import InstrumentedAttribute

_DIGITS = 32


def begins_with(column: "InstrumentedAttribute[UUID]", prefix: str) -> ColumnElement[bool]:
    """Return the condition that an id begins with these hexadecimal digits; hyphens do not count."""
    digits = prefix.replace("-", "")
    if len(digits) > _DIGITS:
        return false()
    return column.between(UUID(digits.ljust(_DIGITS, "0")), UUID(digits.ljust(_DIGITS, "f")))
