"""Building blocks of SQL statements: many rows as one parameter, JSON, times by PostgreSQL's clock."""

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


def given_rows(rows: Iterable[Mapping[str, Any]], **columns: TypeEngine[Any]) -> TableValuedAlias:
    """Pass any number of rows to a statement as one JSON parameter, so that its text and plan stay the same."""
    payload = [{name: json_value(value) for name, value in row.items()} for row in rows]
    return (
        func.jsonb_to_recordset(cast(literal(payload, JSONB), JSONB))
        .table_valued(*(column(name, type_) for name, type_ in columns.items()))
        .render_derived(name="given", with_types=True)
    )


def unnested(name: str, **types: str) -> str:
    """SQL for any number of rows, for FROM: each column is a parameter of its own name, an array of its type.

    PostgreSQL takes a thousand rows faster like that than as JSON, and plans once for any number.
    """
    arrays = ", ".join(f"CAST(:{column} AS {type_}[])" for column, type_ in types.items())
    return f"unnest({arrays}) AS {name} ({', '.join(types)})"


def as_arrays(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Give named tuples of one kind, at least one, as the parameters that `unnested` asks for."""
    return dict(zip(rows[0]._fields, map(list, zip(*rows, strict=True)), strict=True))


def as_json(value: Any) -> str:
    """Put a value into JSON, ten times as fast as the standard library does."""
    return to_json(value).decode()


def json_value(value: Any) -> Any:
    """Put a value as JSON has it."""
    return str(value) if isinstance(value, UUID) else value


def from_now(seconds: float) -> ColumnElement[Any]:
    """A moment by PostgreSQL's clock; before now, if ``seconds`` are less than nothing."""
    return func.now() + literal(timedelta(seconds=seconds))
