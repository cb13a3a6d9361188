"""SQL helpers: many rows in one statement; JSON; times by PostgreSQL's clock.

The statement's text, and so its plan, is the same for any number of rows. Rows to be inserted are one parameter, in
JSON: asyncpg looks at each element of an array, which takes five times as long as writing a whole row as JSON. Where a
statement needs a few columns only, each is an array.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from pydantic_core import to_json
from sqlalchemy import ColumnElement, Select, TableValuedAlias, cast, column, func, literal, select, true
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.elements import KeyedColumnElement
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


def unnested(name: str, /, **types: str) -> str:
    """Return the same as text: a FROM item, whose columns are array parameters with the names of the columns."""
    arrays = ", ".join(f"CAST(:{column} AS {type_}[])" for column, type_ in types.items())
    return f"unnest({arrays}) AS {name} ({', '.join(types)})"


def as_arrays(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Convert named tuples of one type, at least one, to the array parameters of `unnested`."""
    return dict(zip(rows[0]._fields, map(list, zip(*rows, strict=True)), strict=True))


def insertion(entity: type[Base], *, rows: str = "rows", extra_from: str = "", nulls: Sequence[str] = ()) -> str:
    """Return SQL that inserts any number of rows of a mapped table: all columns that PostgreSQL does not fill in.

    The parameter named ``rows`` is what `as_rows` returns, or JSON of the same form. ``extra_from`` goes before it in
    the FROM clause, and ends in a comma; ``nulls`` are columns that are set to null instead of their default.
    """
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    types = {column.name: column.type.compile(dialect) for column in given_columns(entity)}
    names, values = (
        ", ".join([*types, *nulls]),
        ", ".join([*(f"given.{name}" for name in types), *["NULL"] * len(nulls)]),
    )
    record = ", ".join(f"{name} {type_}" for name, type_ in types.items())
    return (
        f"INSERT INTO {entity.__tablename__} ({names}) SELECT {values}"  # noqa: S608 (built from constants)
        f" FROM {extra_from} json_to_recordset(CAST(:{rows} AS json)) AS given ({record})"
    )


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


def from_now(seconds: float) -> ColumnElement[Any]:
    """Return the time ``seconds`` from now by PostgreSQL's clock; negative seconds are in the past."""
    return func.now() + literal(timedelta(seconds=seconds))
