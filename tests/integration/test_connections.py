"""Connections to PostgreSQL when its hosts, its sessions or its tables change."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import structlog
from sqlalchemy import text

from domain.db.database import Database
from domain.db.migrations import migrate
from domain.errors import ConfigurationError, DatabaseUnavailable, MigrationFailed, VolumeBusy
from domain.jobs.model import Job
from domain.services import Services
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, an_engine, ended, sql
from tests.support.worker import supervised

ROOT = Path(__file__).parents[2]


@contextmanager
def frozen_host() -> Iterator[str]:
    """A host that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@asynccontextmanager
async def refusing_server(message: str, sqlstate: str) -> AsyncIterator[str]:
    """A server that answers each connection with an error of PostgreSQL."""

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fields = b"SFATAL\0C%b\0M%b\0\0" % (sqlstate.encode(), message.encode())
        writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def behind(database_url: str, *hosts: str, options: str = "") -> str:
    """Return the URL of a database with other hosts in front of its own."""
    parts = urlsplit(database_url)
    own = dict(parse_qsl(parts.query)).get("host") or parts.netloc.rpartition("@")[2]
    account = parts.netloc.rpartition("@")[0]
    named = "&".join(f"host={host}" for host in (*hosts, own))
    return f"{parts.scheme}://{account}@{parts.path}?{named}{options}"


@pytest.fixture
async def opened(database_url: str) -> AsyncIterator[list[Database]]:
    databases: list[Database] = []
    yield databases
    for database in databases:
        await database.close()


async def test_frozen_host_costs_its_own_timeout_and_the_next_one_is_used(
    database_url: str, opened: list[Database]
) -> None:
    with frozen_host() as frozen:
        opened.append(Database(behind(database_url, frozen, options="&connect_timeout=1")))
        await opened[0].ping()


async def test_host_that_failed_is_tried_last_even_if_nobody_waited_for_its_timeout(
    database_url: str, opened: list[Database]
) -> None:
    """The timeout of a heartbeat is shorter than that of a connection."""
    with frozen_host() as frozen:
        opened.append(Database(behind(database_url, frozen, options="&connect_timeout=30")))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await opened[0].ping()
        async with asyncio.timeout(10):
            await opened[0].ping()


async def test_host_without_writes_is_an_outage_and_named(
    database_url: str, opened: list[Database], services: Services
) -> None:
    opened.append(Database(f"{database_url}&target_session_attrs=standby"))

    with pytest.raises(DatabaseUnavailable) as error:
        await opened[0].ping()

    assert error.value.reason.endswith("is not standby")


@pytest.mark.parametrize("option", ["sslmode=verify-full", "gsslib=none", "sslnegotiation=direct"])
async def test_option_that_asyncpg_cannot_use_is_an_error_of_the_setting(
    opened: list[Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where libpq and asyncpg expect the authorities
    opened.append(Database(f"postgresql://u@127.0.0.1:1/d?{option}"))
    with pytest.raises(ConfigurationError, match=r"^CISTERN_DATABASE_URL: "):
        await opened[0].ping()


@pytest.mark.parametrize(
    ("server_says", "sqlstate"),
    [("sorry, too many clients already", "53300"), ("the database system is starting up", "57P03")],
)
async def test_refusal_of_a_server_is_reported_in_its_own_words(
    opened: list[Database], server_says: str, sqlstate: str
) -> None:
    async with refusing_server(server_says, sqlstate) as address:
        opened.append(Database(f"postgresql://u:p@{address}/d?sslmode=disable"))
        with pytest.raises(DatabaseUnavailable) as error:
            await opened[0].ping()

    assert error.value.reason == f"{address}: {server_says}"
    assert str(error.value) == f"PostgreSQL is not responding: {address}: {server_says}"
    assert error.value.message == "PostgreSQL is not responding."  # what HTTP shows


async def test_host_that_does_not_exist_is_named(opened: list[Database]) -> None:
    opened.append(Database("postgresql://u@nowhere.invalid:5433/d"))
    with pytest.raises(DatabaseUnavailable) as error:
        await opened[0].ping()

    assert error.value.reason.startswith("nowhere.invalid:5433: ")


@pytest.mark.parametrize(
    ("server_says", "sqlstate"),
    [("unsupported startup parameter: lock_timeout", "08P01"), ('role "u" does not exist', "28000")],
)
async def test_server_that_refuses_the_settings_ends_the_process_with_its_words(
    opened: list[Database], server_says: str, sqlstate: str
) -> None:
    async with refusing_server(server_says, sqlstate) as address:
        opened.append(Database(f"postgresql://u:p@{address}/d?sslmode=disable"))
        with pytest.raises(ConfigurationError, match=re.escape(f"refused the connection: {address}: {server_says}")):
            await opened[0].require_migrated()
        with pytest.raises(MigrationFailed, match=re.escape(f"{address}: {server_says}")):
            await asyncio.to_thread(migrate, opened[0]._url)


async def test_transaction_that_hangs_ends_at_its_time_limit(database_url: str, opened: list[Database]) -> None:
    opened.append(Database(database_url, timeout=0.2))

    async def sleep(seconds: float, *, allowed: float | None = None) -> None:
        async with opened[0].transaction(statement_seconds=allowed) as session:
            await session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})

    with pytest.raises(DatabaseUnavailable):
        async with asyncio.timeout(8):
            await sleep(9)
    await sleep(0.5, allowed=9)
    with pytest.raises(DatabaseUnavailable, match="statement timeout"):
        await sleep(9, allowed=0.1)
    await opened[0].ping()


async def test_read_only_session_is_replaced_by_a_ping(services: Services) -> None:
    name = "current_setting('transaction_read_only')"
    await sql(services, "ALTER DATABASE test_shared SET default_transaction_read_only = on")
    database = Database(services.settings.database_url)
    try:
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            await database.ping()
        async with database.transaction() as session:  # one more session that is read-only
            assert await session.scalar(text(f"SELECT {name}")) == "on"
    finally:
        async with services.database.autocommit() as connection:
            await connection.execute(text("SET default_transaction_read_only = off"))
            await connection.execute(text("ALTER DATABASE test_shared RESET default_transaction_read_only"))
    with pytest.raises(DatabaseUnavailable):
        await database.ping()

    await database.ping()
    await database.close()


async def test_column_that_changes_its_type_is_no_error_of_the_server(services: Services) -> None:
    async def read() -> None:
        async with services.database.transaction() as session:
            await session.execute(text("SELECT backend FROM volumes"))

    await read()
    await sql(services, "ALTER TABLE volumes ALTER COLUMN backend TYPE varchar(300)")
    try:
        with pytest.raises(DatabaseUnavailable):  # 503: try again
            await read()
        await read()
    finally:
        await sql(services, "ALTER TABLE volumes ALTER COLUMN backend TYPE text")


async def test_column_that_changes_its_type_costs_running_processes_no_attempt(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    """All statements of these jobs have plans by then: each of them becomes stale in the API and in the worker."""

    async def lives(name: str) -> None:
        job = await answered(lambda: services.volumes.request_create(NewVolume(name, MIB)))
        assert job.volume_id is not None
        volume_id = job.volume_id
        jobs = [job.id, (await answered(lambda: services.volumes.request_expand(volume_id, Growth(by=MIB)))).id]
        for job_id in jobs:
            job = await answered(partial(ended, services, job_id))  # a poll is answered with 503, too
            assert (job.status, job.attempt) == ("succeeded", 1)

    async def answered(request: Callable[[], Awaitable[Job]]) -> Job:
        while True:
            try:
                return await request()
            except (DatabaseUnavailable, VolumeBusy):  # 503 and 409
                await asyncio.sleep(0.01)

    async with supervised(services.settings):
        for number, type_ in enumerate(("varchar(300)", "text", "varchar(200)", "text")):
            await asyncio.gather(*(lives(f"{number}-{n}") for n in range(5)))
            await sql(services, f"ALTER TABLE volumes ALTER COLUMN backend TYPE {type_}")
            await sql(services, f"ALTER TABLE jobs ALTER COLUMN backend TYPE {type_}")
        await asyncio.gather(*(lives(f"last-{n}") for n in range(5)))

    assert any("cached statement plan is invalid" in line for line in caplog.messages), "no plan became stale"
    assert not [line for line in caplog.messages if "Traceback" in line or "_failed" in line or ".failed" in line]


async def test_outage_is_logged_once_when_it_begins_and_once_when_it_ends(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domain.db.database._CALM_SECONDS", 0.0)

    async def lose_connection() -> None:
        async with services.database.transaction() as session:
            await session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    await services.database.ping()
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable):
                await lose_connection()
        await services.database.ping()
        await services.database.ping()

    lines = [line for line in logs if line["event"].startswith("postgresql.")]
    assert [line["event"] for line in lines] == ["postgresql.unavailable", "postgresql.available_again"]
    assert "terminating connection due to administrator command" in lines[0]["reason"]
    assert lines[1]["failures"] == 3


async def test_connections_of_a_process_are_within_the_documented_budget(services: Services) -> None:
    pools: list[Any] = [engine.pool for engine in (services.database._engine, services.database._reserved)]
    most = sum(pool.size() + pool._max_overflow for pool in pools)
    documented = re.search(
        r"per process: at most (\d+) . `CISTERN_MAX_JOBS` \+ (\d+)", (ROOT / "docs" / "operations.md").read_text()
    )

    assert documented is not None
    assert most == int(documented[1]) * services.settings.max_jobs + int(documented[2])


async def test_heartbeat_waits_for_no_connection_that_others_hold(services: Services) -> None:
    engine, release = an_engine(services), asyncio.Event()
    pool: Any = services.database._engine.pool
    number = pool.size() + pool._max_overflow
    held = asyncio.Barrier(number + 1)

    async def hold() -> None:
        async with services.database.transaction() as session:
            await session.execute(text("SELECT 1"))
            await held.wait()
            await release.wait()

    async with asyncio.TaskGroup() as others:
        for _ in range(number):
            others.create_task(hold())
        await held.wait()
        async with asyncio.timeout(2):
            await engine.renew(())
        release.set()


async def test_heartbeat_without_its_connection_uses_another(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await services.database.ping()  # opens one that is idle then
    async with refusing_server("sorry, too many clients already", "53300") as address:
        refused = Database(f"postgresql://u:p@{address}/d?sslmode=disable")
        monkeypatch.setattr(services.database, "_reserved", refused._reserved)
        engine = an_engine(services)
        await engine.renew(())
        await refused.close()

    async with services.database.transaction() as session:
        assert await session.scalar(text("SELECT count(*) FROM workers")) == 1
