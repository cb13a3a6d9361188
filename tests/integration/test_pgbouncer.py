"""PgBouncer between Cistern and PostgreSQL: in session mode, and in transaction mode with what that needs."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from domain.db.connections import _require_settings_of_role, require_usable_pooler
from domain.db.database import SERVER_SETTINGS, Database
from domain.db.migrations import migrate
from domain.embedded import EmbeddedServers
from domain.errors import ConfigurationError
from domain.services import open_services
from domain.settings import Settings
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, ended
from tests.support.databases import run, tables
from tests.support.pgbouncer import TRACKS_STATEMENTS, pgbouncer, version
from tests.support.worker import supervised

pytestmark = pytest.mark.skipif(version() == (0, 0), reason="pgbouncer is not installed (apt-get install pgbouncer)")
tracking = pytest.mark.skipif(version() < TRACKS_STATEMENTS, reason="needs PgBouncer 1.21 or newer")
old = pytest.mark.skipif(version() >= TRACKS_STATEMENTS, reason="needs PgBouncer 1.20 or older")


async def shown(database: Database, *names: str) -> list[str]:
    async with database.transaction() as session:
        connection = await session.connection()
        return [(await connection.exec_driver_sql(f"SHOW {name}")).scalar_one() for name in names]


async def jobs_succeed(settings: Settings, number: int) -> None:
    """Run the services and a worker, and assert that each of so many jobs succeeds in its first attempt."""
    async with open_services(settings, adopt=True) as services, supervised(settings):
        requests = [services.volumes.request_create(NewVolume(f"pooled-{n}", MIB)) for n in range(number)]
        jobs = [await ended(services, job.id) for job in await asyncio.gather(*requests)]
    assert {(job.status, job.attempt) for job in jobs} == {("succeeded", 1)}


async def test_session_mode_needs_nothing(settings: Settings, servers: EmbeddedServers) -> None:
    with pgbouncer(servers, settings.database_url, "session") as url:
        await jobs_succeed(settings.model_copy(update={"database_url": url}), 100)
        database = Database(url)
        names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "transaction_isolation")
        values = await shown(database, *names)
        await database.close()

    assert values == ["5s", "10s", "5s", "read committed"]


def test_migration_leaves_nothing_in_the_session_of_a_pooler(servers: EmbeddedServers, empty_url: str) -> None:
    with pgbouncer(servers, empty_url, "session", server_reset_query="", default_pool_size=2) as url:
        migrate(url)
        migrate(url)
        locks = run(empty_url, "SELECT pid FROM pg_locks WHERE locktype = 'advisory'")
        timeouts = {asyncio.run(_lock_timeout(url)) for _ in range(4)}

    assert "jobs" in tables(empty_url)
    assert (locks, timeouts) == ([], {"0"})


async def _lock_timeout(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("SHOW lock_timeout"))
    finally:
        await connection.close()


@old
@pytest.mark.parametrize(
    "start", [lambda url: Database(url).require_migrated(), lambda url: asyncio.to_thread(migrate, url)]
)
async def test_pooler_that_loses_prepared_statements_is_refused_in_one_line(
    settings: Settings, servers: EmbeddedServers, start: Callable[[str], Awaitable[None]]
) -> None:
    with pgbouncer(servers, settings.database_url, "transaction") as url:
        for _ in range(5):
            with pytest.raises(ConfigurationError, match=r"loses prepared statements: .*1\.21 or newer") as error:
                await start(url)
            assert "\n" not in error.value.message


@tracking
async def test_transaction_mode_needs_settings_of_the_role(settings: Settings, servers: EmbeddedServers) -> None:
    with pgbouncer(servers, settings.database_url, "transaction") as url:
        await asyncio.to_thread(migrate, url)
        with pytest.raises(ConfigurationError, match="ALTER ROLE CURRENT_USER SET") as error:
            await jobs_succeed(settings.model_copy(update={"database_url": url}), 1)
    changes = error.value.message.partition("needs: ")[2].split("; ")
    back = [f"ALTER ROLE CURRENT_USER RESET {name}" for name in SERVER_SETTINGS]
    await asyncio.to_thread(run, settings.database_url, *changes)
    try:
        with pgbouncer(servers, settings.database_url, "transaction") as url:
            await jobs_succeed(settings.model_copy(update={"database_url": url}), 100)
    finally:
        await asyncio.to_thread(run, settings.database_url, *back)


async def test_settings_that_the_role_has_not_are_named(settings: Settings) -> None:
    connection = await asyncpg.connect(settings.database_url.replace("+asyncpg", ""))
    try:
        await _require_settings_of_role(connection, {"lock_timeout": "0"})
        await connection.execute("SET lock_timeout = 5000")  # may be another session's, in transaction mode
        with pytest.raises(ConfigurationError, match=r"ALTER ROLE CURRENT_USER SET lock_timeout = '5000'$"):
            await _require_settings_of_role(connection, {"lock_timeout": "5000"})
    finally:
        await connection.close()


async def test_without_a_pooler_nothing_is_required(settings: Settings) -> None:
    await require_usable_pooler(settings.database_url, SERVER_SETTINGS)
