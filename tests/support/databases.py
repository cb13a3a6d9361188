"""The databases of the tests, read and changed by plain statements."""

import asyncio

from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support import keys

#: Every column as PostgreSQL's catalogue describes it, sorted, without Alembic's table.
COLUMNS = """
    SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version' ORDER BY 1, 2
"""


def run(url: str, *statements: str) -> list[Row[tuple[object, ...]]]:
    """Execute statements, each in its own transaction, and return the rows of the last one."""

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
    """Return the URL of another database on the same server."""
    return url.replace("/cistern?", f"/{name}?")


#: Terminate the connections left by the previous test. Those that are not idle are waited for, up to 5 s.
END_OTHERS = """
    SELECT pg_terminate_backend(pid, CASE WHEN state = 'idle' THEN 0 ELSE 5000 END) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
#: Delete all rows and the statistics of ANALYZE. Most tables never had a row, and skipping them is much faster.
EMPTY = """
    DO $$ DECLARE filled text; BEGIN
        SELECT string_agg(oid::regclass::text, ', ') INTO filled FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
            AND relname NOT IN ('alembic_version', 'installation', 'api_keys', 'projects')
            AND pg_relation_size(oid) > 0;
        IF filled IS NOT NULL THEN EXECUTE 'TRUNCATE ' || filled || ' CASCADE'; END IF;
        DELETE FROM api_keys;
        DELETE FROM projects WHERE name <> 'default';
        UPDATE projects SET max_volumes = NULL, max_bytes = NULL, max_snapshots = NULL, max_queued_jobs = NULL
            WHERE num_nonnulls(max_volumes, max_bytes, max_snapshots, max_queued_jobs) > 0;
        DELETE FROM pg_statistic WHERE starelid >= 16384;
    END $$
"""
#: The number of rows of these catalogues and the transaction that wrote last: a fingerprint of the schema.
CATALOGUES = ("pg_attribute", "pg_constraint", "pg_trigger", "pg_proc", "pg_db_role_setting", "alembic_version")
SCHEMA = "SELECT " + ", ".join(
    f"(SELECT (count(*), max(xmin::text::bigint))::text FROM {catalogue})" for catalogue in CATALOGUES
)


class SharedDatabase:
    """A database that is emptied for each test, which is much faster than creating one for each."""

    def __init__(self, server_url: str, template: str) -> None:
        self.url = named(server_url, "test_shared")
        self._server_url = server_url
        self._template = template
        self._schema: object = None
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._engine = create_async_engine(self.url, isolation_level="AUTOCOMMIT")

    def renew(self) -> None:
        """Empty the database; create it again if it does not exist yet, or if a test has changed its schema."""
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
        """Empty it and return the fingerprint of its schema; None if a test has dropped a table or our connection."""
        try:
            async with self._engine.connect() as connection:
                await connection.execute(text(END_OTHERS))
                await connection.execute(text(EMPTY))
                await connection.execute(text(keys.INSERT))
                return (await connection.execute(text(SCHEMA))).one()
        except DBAPIError:
            return None
