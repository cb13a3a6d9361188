"""Long values are in the object itself only: a list of two hundred must not have two hundred times ten thousand ids."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Text, case, cast, false, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.orm.attributes import set_committed_value

from domain.db.sql import as_json

#: Maximum number of characters of a value outside of the object itself.
MAX_LISTED: Final = 2000
OMITTED: Final = {"omitted": "These parameters are too long to be repeated. The object itself has them."}


def shortened(value: dict[str, Any]) -> dict[str, Any]:
    """Return the value, or `OMITTED` if it has more than `MAX_LISTED` characters as JSON."""
    return value if len(as_json(value)) <= MAX_LISTED else OMITTED


async def load_short(
    session: AsyncSession, column: "InstrumentedAttribute[dict[str, Any]]", rows: Sequence[Any]
) -> None:
    """Load a deferred JSON column of listed rows; values of more than `MAX_LISTED` characters become `OMITTED`."""
    key = column.class_.id
    # Long values are stored apart from the row; their stored size is known without reading them.
    stored = func.pg_column_size(column) > MAX_LISTED
    is_short = case((stored, false()), else_=func.length(cast(column, Text)) <= MAX_LISTED)
    query = select(key, column.label("value")).where(key.in_([row.id for row in rows]), is_short)
    values = {row.id: row.value for row in await session.execute(query)}
    for row in rows:
        set_committed_value(row, column.key, values.get(row.id, OMITTED))
