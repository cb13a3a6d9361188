"""Failures of PostgreSQL that a statement cannot have caused, and those that it may have caused."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from domain.db.database import Database, was_not_executed
from domain.errors import DatabaseUnavailable
from domain.services import Services
from tests.integration.job_builders import sql
from tests.integration.test_connections import refusing_server


@pytest.fixture
async def database(services: Services) -> AsyncIterator[Database]:
    """A database whose process may have two connections, for which others do not wait long."""
    database = Database(services.settings.database_url, pool_size=1)
    pool: Any = database._engine.pool
    pool._timeout = 0.1
    yield database
    await database.close()


async def failure_of(database: Database, statement: str) -> DatabaseUnavailable:
    with pytest.raises(DatabaseUnavailable) as raised:
        async with database.transaction() as session:
            await session.execute(text(statement))
    return raised.value


async def test_statement_without_a_connection_of_postgresql_is_not_executed() -> None:
    async with refusing_server("sorry, too many clients already", "53300") as address:
        database = Database(f"postgresql://u:p@{address}/d?sslmode=disable")
        error = await failure_of(database, "SELECT 1")
        await database.close()

    assert was_not_executed(error)


async def test_statement_without_a_connection_of_this_process_is_not_executed(database: Database) -> None:
    held, release = asyncio.Barrier(3), asyncio.Event()

    async def hold() -> None:
        async with database.transaction() as session:
            await session.execute(text("SELECT 1"))
            await held.wait()
            await release.wait()

    async with asyncio.TaskGroup() as others:
        for _ in range(2):
            others.create_task(hold())
        await held.wait()
        error = await failure_of(database, "SELECT 1")
        release.set()

    assert was_not_executed(error)


async def test_statement_with_a_stale_plan_is_not_executed(database: Database, services: Services) -> None:
    query = "SELECT backend FROM volumes"
    async with database.transaction() as session:
        await session.execute(text(query))
    await sql(services, "ALTER TABLE volumes ALTER COLUMN backend TYPE varchar(300)")
    try:
        error = await failure_of(database, query)
    finally:
        await sql(services, "ALTER TABLE volumes ALTER COLUMN backend TYPE text")

    assert was_not_executed(error)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_terminate_backend(pg_backend_pid())",
        "DO $$ BEGIN RAISE query_canceled; END $$",  # as at a timeout
        "DO $$ BEGIN RAISE lock_not_available; END $$",
    ],
)
async def test_statement_that_was_executed_may_be_the_cause(database: Database, statement: str) -> None:
    assert not was_not_executed(await failure_of(database, statement))
