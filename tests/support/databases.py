"""Databases of the tests' PostgreSQL, looked at and changed by plain statements."""

import asyncio

from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError
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


def named(url: str, name: str) -> str:
    """The address of another database on the same server."""
    return url.replace("/cistern?", f"/{name}?")


#: End the connections that the test before has left. An idle one can do nothing any more; others are waited for.
END_OTHERS = """
    SELECT pg_terminate_backend(pid, CASE WHEN state = 'idle' THEN 0 ELSE 5000 END) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
#: Take out all rows, and what ANALYZE knew of them. Most tables never had a row: to leave them alone is much faster.
EMPTY = """
    DO $$ DECLARE filled text; BEGIN
        SELECT string_agg(oid::regclass::text, ', ') INTO filled FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
            AND relname <> 'alembic_version' AND pg_relation_size(oid) > 0;
        IF filled IS NOT NULL THEN EXECUTE 'TRUNCATE ' || filled || ' CASCADE'; END IF;
        DELETE FROM pg_statistic WHERE starelid >= 16384;
    END $$
"""
#: How many rows these have, and which transaction wrote the last one: another answer when the schema was changed.
CATALOGUES = ("pg_attribute", "pg_constraint", "pg_trigger", "pg_proc", "pg_db_role_setting", "alembic_version")
SCHEMA = "SELECT " + ", ".join(
    f"(SELECT (count(*), max(xmin::text::bigint))::text FROM {catalogue})" for catalogue in CATALOGUES
)


class SharedDatabase:
    """A database that one test has after the other, each time as new: to make one for each would take much longer."""

    def __init__(self, server_url: str, template: str) -> None:
        self.url = named(server_url, "test_shared")
        self._server_url = server_url
        self._template = template
        self._schema: object = None
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._engine = create_async_engine(self.url, isolation_level="AUTOCOMMIT")

    def renew(self) -> None:
        """Empty it; make it again if it is not there yet, or a test has changed its schema."""
        if self._schema is None or self._runner.run(self._emptied()) != self._schema:
            self._runner.run(self._engine.dispose())
            run(
                self._server_url,
                "DROP DATABASE IF EXISTS test_shared WITH (FORCE)",
                f"CREATE DATABASE test_shared TEMPLATE {self._template} STRATEGY FILE_COPY",
            )
            self._schema = self._runner.run(self._emptied())

    def close(self) -> None:
        self._runner.run(self._engine.dispose())
        self._runner.close()

    async def _emptied(self) -> object:
        """What its schema is, now that it is empty; None if a test has taken a table away, or our connection."""
        try:
            async with self._engine.connect() as connection:
                await connection.execute(text(END_OTHERS))
                await connection.execute(text(EMPTY))
                return (await connection.execute(text(SCHEMA))).one()
        except DBAPIError:
            return None
