"""The schema that the migrations make is the one that the code maps, and can be made by two at once."""

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from domain.db.base import Base
from domain.db.database import Database, _known_revisions
from domain.db.migrations import alembic_config, migrate
from domain.errors import ConfigurationError, DatabaseUnavailable, MigrationFailed
from tests.support.databases import COLUMNS, run, tables

TABLES = {"jobs", "snapshots", "volumes", "workers"}

#: What the catalogues of PostgreSQL say about a schema, in its own words; sorted, without Alembic's table.
CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, contype::text, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'
    ORDER BY 1, 2
"""
INDEXES = """
    SELECT tablename, indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1, 2
"""


def alembic_on(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", "domain.db:migrations")
    config.attributes["url"] = url
    return config


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
    async def ask() -> None:
        database = Database(url)
        try:
            await database.require_migrated()
        finally:
            await database.close()

    asyncio.run(ask())


def in_a_process(code: str) -> int:
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


@pytest.mark.parametrize("catalogue", [COLUMNS, CONSTRAINTS, INDEXES], ids=["columns", "constraints", "indexes"])
def test_the_migrated_schema_is_the_mapped_one(database_url: str, empty_url: str, catalogue: str) -> None:
    create_all(empty_url)

    assert run(database_url, catalogue) == run(empty_url, catalogue) != []


def test_alembic_finds_nothing_that_is_missing_either(database_url: str) -> None:
    command.check(alembic_on(database_url))


def test_migrating_makes_every_table(empty_url: str) -> None:
    migrate(empty_url)

    assert tables(empty_url) >= TABLES
    require_migrated(empty_url)


def test_migrating_again_changes_nothing(database_url: str) -> None:
    before = run(database_url, COLUMNS)
    migrate(database_url)

    assert run(database_url, COLUMNS) == before


def test_two_can_migrate_at_once(empty_url: str) -> None:
    """Alembic keeps its context in globals of the process, so the second one is a process of its own."""
    code = f"from domain.db.migrations import migrate; migrate({empty_url!r})"
    with ThreadPoolExecutor(3) as pool:
        ends = list(pool.map(in_a_process, [code] * 3))

    assert ends == [0, 0, 0]
    assert tables(empty_url) >= TABLES


def test_down_and_up_again(database_url: str) -> None:
    command.downgrade(alembic_on(database_url), "base")
    assert not tables(database_url) & TABLES
    migrate(database_url)

    require_migrated(database_url)


def test_a_migration_that_fails_leaves_nothing_behind(empty_url: str) -> None:
    run(empty_url, "CREATE TABLE workers (id int)")
    with pytest.raises(
        MigrationFailed, match=r'^the schema is as it was: .*"workers" already exists; .*`cistern migrate`'
    ):
        migrate(empty_url)

    assert tables(empty_url) & TABLES == {"workers"}


def test_an_empty_database_is_refused_with_what_to_do(empty_url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"at revision none, .* run `cistern migrate`"):
        require_migrated(empty_url)


def test_a_schema_of_a_newer_version_is_accepted(database_url: str) -> None:
    run(database_url, "UPDATE alembic_version SET version_num = '9999_from_the_future'")

    require_migrated(database_url)


def test_migrating_where_nothing_listens_is_an_outage() -> None:
    with pytest.raises(DatabaseUnavailable):
        migrate("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")


def test_the_names_of_the_scripts_tell_the_same_revisions_as_alembic() -> None:
    scripts = ScriptDirectory.from_config(alembic_config("unused"))

    assert _known_revisions() == [script.revision for script in reversed(list(scripts.walk_revisions()))]
