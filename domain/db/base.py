"""Base classes of all mapped tables."""

import enum
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    DateTime,
    Enum,
    MetaData,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Base of every table: naming conventions of constraints, and the mapping of Python types to PostgreSQL's."""

    metadata = MetaData(
        naming_convention={
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
            "pk": "%(table_name)s_pkey",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it as a class attribute)
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(none_as_null=True),
        dict[str, str]: JSONB(none_as_null=True),
        int: BigInteger(),
        str: Text(),
        UUID: Uuid(),
    }


class Entity(Base):
    """A table whose id is a UUIDv7 made in Python: known before the insert, and ordered by time."""

    __abstract__ = True

    id: Mapped[UUID] = mapped_column(primary_key=True, sort_order=-1)


def enum_text(states: type[enum.Enum]) -> Enum:
    """Map an enum to a text column that stores its values; each table has its own CHECK constraint for them."""
    return Enum(
        states, native_enum=False, create_constraint=False, length=32, values_callable=lambda e: [m.value for m in e]
    )
