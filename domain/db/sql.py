"""SQL helpers: many rows as array parameters, one per column; JSON; times by PostgreSQL's clock.

Arrays are the only way to pass many rows: the statement's text, and so its plan, is the same for any number of them.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import ColumnElement, Select, TableValuedAlias, cast, column, func, literal, select, true
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import TypeEngine

from domain.db.base import Base


def array_rows(rows: Iterable[Mapping[str, Any]], /, **columns: TypeEngine[Any]) -> TableValuedAlias:
    """Return a table of these rows, for a statement of SQLAlchemy.

    Args:
        rows: Any number of rows; a column that a row does not have is null.
        columns: The type of each column.
    """
    given = list(rows)
    arrays = [
        cast(literal([row.get(name) for row in given], ARRAY(type_)), ARRAY(type_)) for name, type_ in columns.items()
    ]
    named = [column(name, type_) for name, type_ in columns.items()]
    return func.unnest(*arrays).table_valued(*named).render_derived(name="array_rows")


def unnested(name: str, /, *, prefix: str = "", **types: str) -> str:
    """Return the same as text: a FROM item, whose columns are array parameters with the names of the columns.

    ``prefix`` goes before the names of the parameters, for a statement that has two of them.
    """
    arrays = ", ".join(f"CAST(:{prefix}{column} AS {type_}[])" for column, type_ in types.items())
    return f"unnest({arrays}) AS {name} ({', '.join(types)})"


def as_arrays(rows: Sequence[Any], *, prefix: str = "") -> dict[str, list[Any]]:
    """Convert named tuples of one type, at least one, to the array parameters of `unnested`."""
    names = [prefix + name for name in rows[0]._fields]
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def insertion(entity: type[Base], *, extra_from: str = "", nulls: Sequence[str] = (), prefix: str = "") -> str:
    """Return SQL that inserts any number of rows of a mapped table: all columns that PostgreSQL does not fill in.

    The parameters are those of `as_columns`. ``extra_from`` goes before them in the FROM clause, and ends in a comma;
    ``nulls`` are columns that are set to null instead of their default; ``prefix`` is that of `unnested`.
    """
    types = _given_columns(entity)
    values = ", ".join(f"CAST(given.{name} AS jsonb)" if is_json else f"given.{name}" for name, _, is_json in types)
    arrays = unnested("given", prefix=prefix, **{name: type_ for name, type_, _ in types})
    names = ", ".join([*(name for name, _, _ in types), *nulls])
    values += ", NULL" * len(nulls)
    return f"INSERT INTO {entity.__tablename__} ({names}) SELECT {values} FROM {extra_from} {arrays}"  # noqa: S608


def as_columns(entity: type[Base], rows: Sequence[Base]) -> dict[str, list[Any]]:
    """Convert mapped objects to the array parameters of `insertion`."""
    arrays: dict[str, list[Any]] = {}
    for name, _, is_json in _given_columns(entity):
        values = [getattr(row, name) for row in rows]
        arrays[name] = [None if value is None else as_json(value) for value in values] if is_json else values
    return arrays


@functools.cache
def _given_columns(entity: type[Base]) -> list[tuple[str, str, bool]]:
    """Return name, array element type, and whether it is JSON, of the columns that PostgreSQL does not fill in."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    found = []
    for one in entity.__table__.columns:
        if one.server_default is None or one.default is not None:
            is_json = isinstance(one.type, JSONB)
            found.append((one.name, "text" if is_json else one.type.compile(dialect), is_json))
    return found


def statement_timeout(seconds: float) -> Select[str]:
    """Return the statement that sets the timeout of the following statements of its transaction."""
    return select(func.set_config("statement_timeout", f"{seconds * 1000:.0f}ms", true()))


def as_json(value: Any) -> str:
    """Serialize a value to JSON, ten times as fast as the standard library."""
    return to_json(value).decode()


def first_id_of(moment: datetime) -> UUID:
    """Return the lowest UUIDv7 of a millisecond: ids are ordered by time, and need no index on it."""
    return UUID(int=int(moment.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62)


def from_now(seconds: float) -> ColumnElement[Any]:
    """Return the time ``seconds`` from now by PostgreSQL's clock; negative seconds are in the past."""
    return func.now() + literal(timedelta(seconds=seconds))
