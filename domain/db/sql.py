"""SQL helpers: many rows as one parameter, JSON, and times by PostgreSQL's clock."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import (
    ColumnElement,
    TableValuedAlias,
    cast,
    column,
    func,
    literal,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine


def json_rows(rows: Iterable[Mapping[str, Any]], **columns: TypeEngine[Any]) -> TableValuedAlias:
    """Return a table of these rows, passed as one JSON parameter: the statement's text and plan do not change.

    Args:
        rows: Any number of rows.
        columns: The type of each column.
    """
    payload = [{name: json_value(value) for name, value in row.items()} for row in rows]
    return (
        func.jsonb_to_recordset(cast(literal(payload, JSONB), JSONB))
        .table_valued(*(column(name, type_) for name, type_ in columns.items()))
        .render_derived(name="json_rows", with_types=True)
    )


def unnested(name: str, **types: str) -> str:
    """Return SQL for a FROM item of any number of rows: each column is an array parameter with the column's name.

    For a thousand rows this is faster than JSON, and PostgreSQL plans the statement once for any number of rows.
    """
    arrays = ", ".join(f"CAST(:{column} AS {type_}[])" for column, type_ in types.items())
    return f"unnest({arrays}) AS {name} ({', '.join(types)})"


def as_arrays(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Convert named tuples of one type, at least one, to the array parameters of `unnested`."""
    return dict(zip(rows[0]._fields, map(list, zip(*rows, strict=True)), strict=True))


def as_json(value: Any) -> str:
    """Serialize a value to JSON, ten times as fast as the standard library."""
    return to_json(value).decode()


def json_value(value: Any) -> Any:
    """Convert a value to one that JSON can represent."""
    return str(value) if isinstance(value, UUID) else value


def from_now(seconds: float) -> ColumnElement[Any]:
    """Return the time ``seconds`` from now by PostgreSQL's clock; negative seconds are in the past."""
    return func.now() + literal(timedelta(seconds=seconds))
