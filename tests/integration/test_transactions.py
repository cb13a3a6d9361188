"""A transaction belongs to one task: committed on a clean exit, rolled back on an exception, never shared."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.database import Database, in_transaction
from domain.errors import DatabaseUnavailable
from domain.services import Services
from domain.settings import Settings
from tests.integration.job_builders import a_volume, sql


async def names(services: Services) -> list[str]:
    return [name for (name,) in await sql(services, "SELECT name FROM volumes ORDER BY name")]


async def insert_named(session: AsyncSession, name: str) -> None:
    await session.execute(
        text(
            "INSERT INTO volumes (id, name, backend, state, size, version, labels)"
            " VALUES (gen_random_uuid(), :name, 'memory', 'available', 1, 1, '{}')"
        ),
        {"name": name},
    )


async def test_clean_exit_commits(services: Services) -> None:
    async with services.database.transaction() as session:
        await insert_named(session, "kept")

    assert await names(services) == ["kept"]


async def test_exception_rolls_back_and_propagates(services: Services) -> None:
    async def fail() -> None:
        async with services.database.transaction() as session:
            await insert_named(session, "one")
            await insert_named(session, "two")
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await fail()

    assert await names(services) == []


async def test_cancelled_task_is_rolled_back(services: Services) -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with services.database.transaction() as session:
            await insert_named(session, "half")
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert await names(services) == []


async def test_constraint_violation_is_not_an_outage(services: Services) -> None:
    await a_volume(services, name="taken")
    with pytest.raises(IntegrityError):
        async with services.database.transaction() as session:
            await insert_named(session, "taken")


async def test_transaction_is_open_only_in_its_own_task(services: Services) -> None:
    opened = asyncio.Event()

    async def elsewhere() -> bool:
        await opened.wait()
        return in_transaction()

    other = asyncio.create_task(elsewhere())
    async with services.database.transaction():
        opened.set()
        assert (in_transaction(), await other) == (True, False)

    assert not in_transaction()


async def test_no_transaction_is_open_after_an_exception(services: Services) -> None:
    with pytest.raises(ValueError, match="on purpose"):
        async with services.database.transaction():
            raise ValueError("on purpose")

    assert not in_transaction()


async def test_storage_cannot_be_used_inside_a_transaction(services: Services) -> None:
    async with services.database.transaction():
        with pytest.raises(RuntimeError, match="inside a transaction"):
            services.backends.get("memory")

    services.backends.get("memory")


async def test_two_hundred_tasks_have_two_hundred_sessions(services: Services) -> None:
    sessions: list[AsyncSession] = []
    busy: set[int] = set()

    async def work() -> None:
        async with services.database.transaction() as session:
            assert id(session) not in busy
            busy.add(id(session))
            sessions.append(session)  # kept alive, so that no two sessions have the same id()
            await session.execute(text("SELECT 1"))
            busy.remove(id(session))

    await asyncio.gather(*(work() for _ in range(200)))

    assert len({id(session) for session in sessions}) == 200


async def test_closed_port_is_an_outage() -> None:
    database = Database("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")
    with pytest.raises(DatabaseUnavailable):
        await database.ping()
    await database.close()


async def test_lost_connection_is_an_outage_and_is_replaced(services: Services) -> None:
    async def lose_connection() -> None:
        async with services.database.transaction() as session:
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            await sql(services, "SELECT pg_terminate_backend(:pid)", pid=pid)
            await session.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable):
        await lose_connection()

    await services.database.ping()


async def test_idle_connection_that_is_alive_is_reused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domain.db.connections._IDLE_SECONDS", 0.0)
    database, pids = Database(database_url), set()
    for _ in range(3):
        async with database.transaction() as session:
            pids.add((await session.scalars(text("SELECT pg_backend_pid()"))).one())
        async with database.autocommit() as connection:
            pids.add((await connection.scalars(text("SELECT pg_backend_pid()"))).one())
    await database.close()

    assert len(pids) == 1


async def test_connections_that_died_silently_are_replaced_together_and_soon(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domain.db.connections._IDLE_SECONDS", 0.0)
    monkeypatch.setattr("domain.db.connections._PING_TIMEOUT", 0.2)
    database, all_connected = Database(database_url, pool_size=5), asyncio.Barrier(5)

    async def backend_pid() -> int:
        async with database.transaction() as session:
            await all_connected.wait()
            pid: int = (await session.scalars(text("SELECT pg_backend_pid()"))).one()
            return pid

    stopped = await asyncio.gather(*(backend_pid() for _ in range(5)))
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(30):  # one by one, each would take 60 s
            await database.ping()
            await database.ping()
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        await database.close()


async def test_read_only_postgresql_is_an_outage(services: Services) -> None:
    async def write() -> None:
        async with services.database.transaction() as session:
            await session.execute(text("SET TRANSACTION READ ONLY"))
            await session.execute(text("DELETE FROM volumes"))

    with pytest.raises(DatabaseUnavailable):
        await write()


async def test_statement_timeout_is_an_outage(services: Services) -> None:
    async def time_out() -> None:
        async with services.database.transaction() as session:
            await session.execute(text("SET LOCAL statement_timeout = 50"))
            await session.execute(text("SELECT pg_sleep(30)"))

    with pytest.raises(DatabaseUnavailable):
        await time_out()


async def test_deadlock_is_an_outage_for_one_session_and_the_other_succeeds(services: Services) -> None:
    first, second = await a_volume(services), await a_volume(services)
    both_locked_one = asyncio.Barrier(2)
    touch = text("UPDATE volumes SET version = version + 1 WHERE id = :id")

    async def work(*order: object) -> None:
        async with services.database.transaction() as session:
            await session.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
            await session.execute(touch, {"id": order[0]})
            await both_locked_one.wait()
            await session.execute(touch, {"id": order[1]})

    results = await asyncio.gather(work(first.id, second.id), work(second.id, first.id), return_exceptions=True)

    assert sorted(type(result).__name__ for result in results) == ["DatabaseUnavailable", "NoneType"]
    assert await sql(services, "SELECT DISTINCT version FROM volumes") == [(2,)]


async def test_exhausted_connection_pool_is_an_outage(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(services.settings.database_url, pool_size=1)
    monkeypatch.setattr(database._engine.pool, "_timeout", 0.05)
    async with database.transaction() as one, asyncio.TaskGroup() as others:
        await one.execute(text("SELECT 1"))
        inside, leave = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with database.transaction() as session:
                await session.execute(text("SELECT 1"))
                inside.set()
                await leave.wait()

        others.create_task(hold())
        await inside.wait()
        with pytest.raises(DatabaseUnavailable):
            await asyncio.create_task(database.ping())
        leave.set()
    await database.close()


async def test_close_does_not_wait_for_a_paused_postgresql(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncpg waits for a reply to its Terminate message without a timeout."""
    monkeypatch.setattr("domain.db.database.CLOSE_TIMEOUT", 0.1)
    database = Database(settings.database_url)
    async with database.transaction() as session:
        backend = (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one()
    os.kill(backend, signal.SIGSTOP)
    try:
        async with asyncio.timeout(20):
            await database.close()
    finally:
        os.kill(backend, signal.SIGCONT)


@asynccontextmanager
async def altered(database_url: str, change: str, back: str) -> AsyncIterator[None]:
    """Change the database, or a table of it, for all sessions that begin in the block."""
    administrator = Database(database_url)

    async def run(statement: str) -> None:
        async with administrator.autocommit() as connection:
            await connection.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE"))
            name = await connection.scalar(text("SELECT current_database()"))
            await connection.execute(text(statement.format(database=name)))

    await run(change)
    try:
        yield
    finally:
        await run(back)
        await administrator.close()


async def test_level_of_isolation_is_that_of_cistern(database_url: str) -> None:
    serializable = "ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'"
    back = "ALTER DATABASE {database} RESET default_transaction_isolation"
    async with altered(database_url, serializable, back):
        database = Database(database_url)
        async with database.transaction() as session, database.autocommit() as connection:
            levels = [await one.scalar(text("SHOW transaction_isolation")) for one in (session, connection)]
        await database.close()

    assert levels == ["read committed"] * 2


async def test_sessions_that_began_read_only_are_replaced_once_the_server_is_writable(database_url: str) -> None:
    database = Database(database_url)
    read_only = "ALTER DATABASE {database} SET default_transaction_read_only = on"
    async with altered(database_url, read_only, "ALTER DATABASE {database} RESET default_transaction_read_only"):
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable):
                async with database.transaction() as session:
                    await insert_named(session, "refused")

    async with database.transaction() as session:
        await insert_named(session, "accepted")
        await session.rollback()
    await database.close()
