"""One transaction, inside one task: committed on a clean exit, rolled back on an exception, never shared."""

import asyncio
import os
import signal

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


async def test_a_clean_exit_commits(services: Services) -> None:
    async with services.database.transaction() as session:
        await insert_named(session, "kept")

    assert await names(services) == ["kept"]


async def test_an_exception_rolls_everything_back_and_is_passed_on(services: Services) -> None:
    async def fail() -> None:
        async with services.database.transaction() as session:
            await insert_named(session, "one")
            await insert_named(session, "two")
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await fail()

    assert await names(services) == []


async def test_a_cancelled_task_leaves_nothing_behind(services: Services) -> None:
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


async def test_a_broken_rule_is_no_outage(services: Services) -> None:
    await a_volume(services, name="taken")
    with pytest.raises(IntegrityError):
        async with services.database.transaction() as session:
            await insert_named(session, "taken")


async def test_a_transaction_is_open_in_its_own_task_only(services: Services) -> None:
    opened = asyncio.Event()

    async def elsewhere() -> bool:
        await opened.wait()
        return in_transaction()

    other = asyncio.create_task(elsewhere())
    async with services.database.transaction():
        opened.set()
        assert (in_transaction(), await other) == (True, False)

    assert not in_transaction()


async def test_after_an_exception_no_transaction_is_open(services: Services) -> None:
    with pytest.raises(ValueError, match="on purpose"):
        async with services.database.transaction():
            raise ValueError("on purpose")

    assert not in_transaction()


async def test_no_storage_work_begins_inside_a_transaction(services: Services) -> None:
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
            sessions.append(session)  # kept alive, so that no two can have the same id
            await session.execute(text("SELECT 1"))
            busy.remove(id(session))

    await asyncio.gather(*(work() for _ in range(200)))

    assert len({id(session) for session in sessions}) == 200


async def test_a_closed_port_is_an_outage() -> None:
    database = Database("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")
    with pytest.raises(DatabaseUnavailable):
        await database.ping()
    await database.close()


async def test_a_lost_connection_is_an_outage_and_the_next_one_is_fresh(services: Services) -> None:
    async def be_cut_off() -> None:
        async with services.database.transaction() as session:
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            await sql(services, "SELECT pg_terminate_backend(:pid)", pid=pid)
            await session.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable):
        await be_cut_off()

    await services.database.ping()


async def test_a_connection_that_has_rested_and_lives_is_used_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domain.db.database._RESTED_SECONDS", 0.0)
    database, used = Database(database_url), set()
    for _ in range(3):
        async with database.transaction() as session:
            used.add((await session.scalars(text("SELECT pg_backend_pid()"))).one())
        async with database.autocommit() as connection:
            used.add((await connection.scalars(text("SELECT pg_backend_pid()"))).one())
    await database.close()

    assert len(used) == 1


async def test_connections_that_have_died_in_silence_are_given_up_together_and_soon(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domain.db.database._RESTED_SECONDS", 0.0)
    monkeypatch.setattr("domain.db.database._PING_SECONDS", 0.2)
    database, together = Database(database_url, pool_size=5), asyncio.Barrier(5)

    async def a_connection() -> int:
        async with database.transaction() as session:
            await together.wait()
            pid: int = (await session.scalars(text("SELECT pg_backend_pid()"))).one()
            return pid

    stopped = await asyncio.gather(*(a_connection() for _ in range(5)))
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(30):  # each would take 60 seconds
            await database.ping()
            await database.ping()
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        await database.close()


async def test_a_postgresql_that_may_not_be_written_to_is_an_outage(services: Services) -> None:
    async def write() -> None:
        async with services.database.transaction() as session:
            await session.execute(text("SET TRANSACTION READ ONLY"))
            await session.execute(text("DELETE FROM volumes"))

    with pytest.raises(DatabaseUnavailable):
        await write()


async def test_a_statement_that_takes_too_long_is_an_outage(services: Services) -> None:
    async def dawdle() -> None:
        async with services.database.transaction() as session:
            await session.execute(text("SET LOCAL statement_timeout = 50"))
            await session.execute(text("SELECT pg_sleep(30)"))

    with pytest.raises(DatabaseUnavailable):
        await dawdle()


async def test_a_deadlock_is_an_outage_for_one_and_success_for_the_other(services: Services) -> None:
    first, second = await a_volume(services), await a_volume(services)
    both_hold_one = asyncio.Barrier(2)
    touch = text("UPDATE volumes SET version = version + 1 WHERE id = :id")

    async def work(*order: object) -> None:
        async with services.database.transaction() as session:
            await session.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
            await session.execute(touch, {"id": order[0]})
            await both_hold_one.wait()
            await session.execute(touch, {"id": order[1]})

    ends = await asyncio.gather(work(first.id, second.id), work(second.id, first.id), return_exceptions=True)

    assert sorted(type(end).__name__ for end in ends) == ["DatabaseUnavailable", "NoneType"]
    assert await sql(services, "SELECT DISTINCT version FROM volumes") == [(2,)]


async def test_no_connection_free_in_time_is_an_outage(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_a_postgresql_that_stands_still_keeps_nobody_from_ending(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncpg waits for an answer to its goodbye, for ever."""
    monkeypatch.setattr("domain.db.database.GOODBYE_SECONDS", 0.1)
    database = Database(settings.database_url)
    async with database.transaction() as session:
        backend = (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one()
    os.kill(backend, signal.SIGSTOP)
    try:
        async with asyncio.timeout(20):
            await database.close()
    finally:
        os.kill(backend, signal.SIGCONT)
