"""Base classes of all mapped tables."""

import enum
from datetime import datetime
from typing import Any, Final, NoReturn, TypeVar
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, Enum, MetaData, Text, Uuid, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
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

    def loaded_columns(self) -> dict[str, Any]:
        """Return the columns that were set or read, by name: a tenth of the work of reading each as an attribute."""
        return {name: value for name, value in vars(self).items() if name != "_sa_instance_state"}


class Entity(Base):
    """A table whose id is a UUIDv7 made in Python: known before the insert, and ordered by time."""

    __abstract__ = True

    id: Mapped[UUID] = mapped_column(primary_key=True, sort_order=-1)


#: The project that every installation has. Rows from before there were projects are in it.
DEFAULT_PROJECT: Final = UUID("00000000-0000-7000-8000-000000000001")


def _required() -> NoReturn:
    """Refuse to insert a row without a project.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("a row was inserted without its project")


def project_column(*arguments: Any) -> Mapped[UUID]:
    """Return the column with the project of a row.

    Its default in PostgreSQL is only for processes of versions that do not know the column.
    """
    default = text(f"'{DEFAULT_PROJECT}'")
    return mapped_column(*arguments, default=_required, server_default=default, sort_order=-1)


class Owned(Entity):
    """A table whose rows each belong to a project. What a client asks for is looked up within its own project.

    There is no foreign key: each of them would lock the row of the project, which every request shares.
    """

    __abstract__ = True

    project_id: Mapped[UUID] = project_column()


Row = TypeVar("Row", bound=Owned)


async def find_owned(
    session: AsyncSession, entity: type[Row], row_id: UUID, project_id: UUID, *, for_update: bool = False
) -> Row | None:
    """Read a row of a project; ``for_update`` locks it. A row of another project is neither read nor locked."""
    query = select(entity).where(entity.id == row_id, entity.project_id == project_id)
    if for_update:
        query = query.with_for_update().execution_options(populate_existing=True)
    return await session.scalar(query)


def in_project(row: Row | None, project_id: UUID) -> Row | None:
    """Return a row that was read together with those of other projects if it belongs to this one, else None."""
    return row if row is not None and row.project_id == project_id else None


def enum_text(states: type[enum.Enum]) -> Enum:
    """Map an enum to a text column that stores its values; each table has its own CHECK constraint for them."""
    return Enum(
        states, native_enum=False, create_constraint=False, length=32, values_callable=lambda e: [m.value for m in e]
    )
