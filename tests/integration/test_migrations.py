"""The migrated schema is the one that the code maps, and concurrent migrations succeed."""

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from domain.db.base import Base
from domain.db.database import Database, known_revisions
from domain.db.migrations import alembic_config, migrate
from domain.errors import ConfigurationError, DatabaseUnavailable, MigrationFailed
from tests.support.databases import COLUMNS, run, tables

TABLES = {"jobs", "snapshots", "volumes", "workers"}

#: Constraints and indexes as PostgreSQL's catalogues describe them, sorted, without Alembic's table.
CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, contype::text, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'
    ORDER BY 1, 2
"""
INDEXES = """
    SELECT tablename, indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1, 2
"""


def create_all(url: str) -> None:
    def create(connection: Connection) -> None:
        Base.metadata.create_all(connection)

    async def execute() -> None:
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            await connection.run_sync(create)
        await engine.dispose()

    asyncio.run(execute())


def require_migrated(url: str) -> None:
    async def require() -> None:
        database = Database(url)
        try:
            await database.require_migrated()
        finally:
            await database.close()

    asyncio.run(require())


def run_in_process(code: str) -> int:
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


@pytest.mark.parametrize("catalogue", [COLUMNS, CONSTRAINTS, INDEXES], ids=["columns", "constraints", "indexes"])
def test_migrated_schema_equals_the_mapped_one(database_url: str, empty_url: str, catalogue: str) -> None:
    create_all(empty_url)

    assert run(database_url, catalogue) == run(empty_url, catalogue) != []


def test_alembic_check_finds_no_difference(database_url: str) -> None:
    command.check(alembic_config(database_url))


def test_migration_creates_every_table(empty_url: str) -> None:
    migrate(empty_url)

    assert tables(empty_url) >= TABLES
    require_migrated(empty_url)


def test_second_migration_changes_nothing(database_url: str) -> None:
    before = run(database_url, COLUMNS)
    migrate(database_url)

    assert run(database_url, COLUMNS) == before


def test_concurrent_migrations_succeed(empty_url: str) -> None:
    """Alembic keeps its context in global variables, so each migration runs in its own process."""
    code = f"from domain.db.migrations import migrate; migrate({empty_url!r})"
    with ThreadPoolExecutor(3) as pool:
        exit_codes = list(pool.map(run_in_process, [code] * 3))

    assert exit_codes == [0, 0, 0]
    assert tables(empty_url) >= TABLES


def test_downgrade_and_upgrade(database_url: str) -> None:
    command.downgrade(alembic_config(database_url), "base")
    assert not tables(database_url) & TABLES
    migrate(database_url)

    require_migrated(database_url)


def test_failed_migration_is_rolled_back(empty_url: str) -> None:
    run(empty_url, "CREATE TABLE workers (id int)")
    with pytest.raises(
        MigrationFailed, match=r'^the schema is unchanged: .*"workers" already exists; .*`cistern migrate`'
    ):
        migrate(empty_url)

    assert tables(empty_url) & TABLES == {"workers"}


def test_empty_database_is_refused_with_the_command_to_run(empty_url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"at revision none, .* run `cistern migrate`"):
        require_migrated(empty_url)


def test_newer_schema_is_accepted(database_url: str) -> None:
    run(database_url, "UPDATE alembic_version SET version_num = '9999_from_the_future'")

    require_migrated(database_url)


def test_migration_without_postgresql_is_an_outage() -> None:
    with pytest.raises(DatabaseUnavailable):
        migrate("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")


def test_revisions_from_file_names_equal_those_of_alembic() -> None:
    scripts = ScriptDirectory.from_config(alembic_config("unused"))

    assert known_revisions() == [script.revision for script in reversed(list(scripts.walk_revisions()))]
