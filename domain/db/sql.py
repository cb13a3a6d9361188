"""SQL helpers: many rows in one statement; JSON; times by PostgreSQL's clock.

The statement's text, and so its plan, is the same for any number of rows. Rows of many columns are one parameter, in
JSON: asyncpg looks at each element of an array, so that ten of them take longer than a whole row as JSON. Where the
rows have three columns or fewer, each column is an array.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import ColumnElement, Select, TableValuedAlias, cast, column, func, literal, select, true
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.elements import KeyedColumnElement
from sqlalchemy.types import TypeEngine

from domain.db.base import Base

Value = TypeVar("Value")
#: What PostgreSQL assumes of an array whose value it does not know when it plans.
_ASSUMED_ELEMENTS: Final = 10


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


def unnested(name: str, /, **types: str) -> str:
    """Return the same as text: a FROM item, whose columns are array parameters with the names of the columns."""
    arrays = ", ".join(f"CAST(:{column} AS {type_}[])" for column, type_ in types.items())
    return f"unnest({arrays}) AS {name} ({', '.join(types)})"


def as_arrays(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Convert named tuples of one type, at least one, to the array parameters of `unnested`, as `as_array` does."""
    return dict(zip(rows[0]._fields, map(list, zip(*as_array(rows), strict=True)), strict=True))


def as_array(values: Collection[Value]) -> list[Value]:
    """Convert values to an array parameter of at least ten elements: the last one is repeated, which has no effect.

    PostgreSQL plans for ten elements of an array that it does not know. It would find a plan for fewer ones cheaper,
    and so plan each execution anew, which takes longer than the execution.
    """
    array = [*values]
    return array + array[-1:] * (_ASSUMED_ELEMENTS - len(array))


def recordset(name: str, /, rows: str = "rows", **types: str) -> str:
    """Return a FROM item whose rows are one parameter of JSON, named ``rows``; a column that a row lacks is null."""
    columns = ", ".join(f"{column} {type_}" for column, type_ in types.items())
    return f"json_to_recordset(CAST(:{rows} AS json)) AS {name} ({columns})"


def as_records(rows: Iterable[Any]) -> str:
    """Convert named tuples to the parameter of `recordset`."""
    return as_json([row._asdict() for row in rows])


def insertion(entity: type[Base], *, rows: str = "rows", extra_from: str = "", nulls: Sequence[str] = ()) -> str:
    """Return SQL that inserts any number of rows of a mapped table: all columns that PostgreSQL does not fill in.

    The parameter named ``rows`` is what `as_rows` returns, or JSON of the same form. ``extra_from`` goes before it in
    the FROM clause, and ends in a comma; ``nulls`` are columns that are set to null instead of their default.
    """
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    types = {column.name: column.type.compile(dialect) for column in given_columns(entity)}
    names = ", ".join([*types, *nulls])
    values = ", ".join([*(f"given.{name}" for name in types), *["NULL"] * len(nulls)])
    given = recordset("given", rows, **types)
    return f"INSERT INTO {entity.__tablename__} ({names}) SELECT {values} FROM {extra_from} {given}"  # noqa: S608


def given_columns(entity: type[Base]) -> Sequence[KeyedColumnElement[Any]]:
    """Return the columns of a mapped table that PostgreSQL does not fill in."""
    return [one for one in entity.__table__.columns if one.server_default is None or one.default is not None]


def as_rows(rows: Iterable[Base]) -> str:
    """Convert mapped objects to the parameter of `insertion`; a column that is not set is null."""
    return as_json([row.loaded_columns() for row in rows])


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
