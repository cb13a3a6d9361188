"""Databases of the tests' PostgreSQL, looked at and changed by plain statements."""

import asyncio

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import create_async_engine

#: What the catalogue says of all columns, in its own words; sorted, without Alembic's table.
COLUMNS = """
    SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version' ORDER BY 1, 2
"""


def run(url: str, *statements: str) -> list[Row[tuple[object, ...]]]:
    """Execute statements, each for itself; returns the rows of the last one."""

    async def execute() -> list[Row[tuple[object, ...]]]:
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
        rows: list[Row[tuple[object, ...]]] = []
        try:
            async with engine.connect() as connection:
                for statement in statements:
                    result = await connection.execute(text(statement))
                    rows = list(result) if result.returns_rows else []
        finally:
            await engine.dispose()
        return rows

    return asyncio.run(execute())


def tables(url: str) -> set[object]:
    return {name for (name,) in run(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
