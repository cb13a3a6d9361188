"""What /readyz tells of the queue, and the counters that workers write with their heartbeats."""

import asyncio

import pytest
from sqlalchemy import text

from domain.db.database import Database
from domain.errors import DatabaseUnavailable
from domain.jobs import stats as signals_module
from domain.jobs.outcomes import Payload, RetryIn
from domain.jobs.stats import CounterName, Stats, StatsCache, StatsRepository
from domain.services import Services
from tests.integration.job_builders import a_queued_expand, an_engine, queued_jobs, run_out, set_job, sql
from tests.integration.test_rescue import at_work

ERROR: Payload = {"code": "storage-unavailable", "detail": "gone"}


async def look(services: Services) -> Stats:
    async with services.database.transaction() as session:
        return await StatsRepository(session).read()


async def test_an_idle_installation_has_nothing_to_tell(services: Services) -> None:
    assert await look(services) == Stats(0, None, {"rescued": 0, "retried": 0, "lost_messages": 0})


async def test_jobs_that_are_due_are_counted_rung_or_not_and_others_are_not(services: Services) -> None:
    dispatched, unrung, later, running = [await a_queued_expand(services) for _ in range(4)]
    await set_job(services, dispatched.id, "run_at = now() - interval '5 minutes', dispatched_at = now()")
    await set_job(services, unrung.id, "run_at = now() - interval '1 minute', dispatched_at = NULL")
    await set_job(services, later.id, "run_at = now() + interval '1 hour', dispatched_at = NULL")
    await set_job(services, running.id, "status = 'running', started_at = now(), run_at = now() - interval '1 day'")
    seen = await look(services)

    assert seen.queue_depth == 2
    assert seen.oldest_due_seconds is not None
    assert 300 <= seen.oldest_due_seconds < 360


async def test_a_long_queue_is_not_counted_to_its_end(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals_module, "MAX_COUNTED", 50)
    await queued_jobs(services, 200)
    await sql(services, "UPDATE jobs SET dispatched_at = NULL WHERE id IN (SELECT id FROM jobs LIMIT 100)")

    assert (await look(services)).queue_depth == 50


async def test_both_parts_of_the_queue_are_read_from_their_own_index(services: Services) -> None:
    await queued_jobs(services, 2000)
    await sql(services, "ANALYZE jobs")
    statement = str(signals_module._waiting().compile(compile_kwargs={"literal_binds": True}))
    async with services.database.transaction() as session:
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join(row[0] for row in await session.execute(text(f"EXPLAIN {statement}")))

    assert "jobs_due" in plan
    assert "jobs_rung" in plan


async def test_each_look_is_remembered_for_a_second(services: Services) -> None:
    signposts = StatsCache(services.database)
    first = await signposts.latest()
    await a_queued_expand(services)
    assert await asyncio.gather(*(signposts.latest() for _ in range(20))) == [first] * 20
    signposts._seen_at -= 1

    assert (await signposts.latest() or first) != first


async def test_without_postgresql_there_are_no_signals_and_no_failure() -> None:
    nowhere = Database("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")

    assert await StatsCache(nowhere).latest() is None


async def test_a_look_that_takes_long_is_given_up(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals_module, "_TIMEOUT_SECONDS", 0.2)
    async with services.database.transaction() as session:
        await session.execute(text("LOCK TABLE counters"))

        assert await asyncio.create_task(StatsCache(services.database).latest()) is None


async def test_a_bug_in_the_signals_is_no_failure_either(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(_: object) -> Stats:
        raise ValueError("a bug")

    monkeypatch.setattr(StatsRepository, "read", crash)

    assert await StatsCache(services.database).latest() is None


async def test_rescues_retries_and_lost_rings_are_counted_and_written_with_the_next_beat(services: Services) -> None:
    engine = an_engine(services)
    orphan, failing, lost = [await at_work(services, an_engine(services)) for _ in range(3)]
    await run_out(services, orphan.id)
    await set_job(services, failing.id, f"worker_id = '{engine._worker.id}'")
    await set_job(
        services, lost.id, "status = 'queued', lease_expires_at = NULL, dispatched_at = now() - interval '1 minute'"
    )
    await engine.rescue()
    await engine.settle(failing, RetryIn(60, ERROR))
    await services.queue.redis.flushall()
    await engine.redispatch_lost()
    before = (await look(services)).counters
    await engine.renew([])

    assert before == {"rescued": 0, "retried": 0, "lost_messages": 0}
    assert (await look(services)).counters == {"rescued": 1, "retried": 1, "lost_messages": 1}


async def test_waiting_for_somebody_else_is_not_counted_as_a_retry(services: Services) -> None:
    engine = an_engine(services)
    job = await at_work(services, engine)
    await engine.settle(job, RetryIn(60, ERROR, free=True))

    assert engine._counters.pending() == {}


async def test_what_was_written_once_is_not_written_again(services: Services) -> None:
    engine = an_engine(services)
    for _ in range(2):
        engine._counters.add(CounterName.RESCUED, 2)
        await engine.renew([])
        await engine.renew([])

    assert (await look(services)).counters["rescued"] == 4


async def test_what_could_not_be_written_is_written_later(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = an_engine(services)
    engine._counters.add(CounterName.RETRIED)

    async def away(*_: object) -> bool:
        raise DatabaseUnavailable

    with monkeypatch.context() as broken:
        broken.setattr(StatsRepository, "add", away)
        with pytest.raises(DatabaseUnavailable):
            await engine.renew([])
    await engine.renew([])

    assert (await look(services)).counters["retried"] == 1


async def test_a_stopped_process_that_writes_counters_keeps_no_heart_from_beating(services: Services) -> None:
    engine = an_engine(services)
    job = await at_work(services, engine)
    engine._counters.add(CounterName.RESCUED)
    async with services.database.transaction() as session:
        await StatsRepository(session).add({"rescued": 5})
        async with asyncio.timeout(4):
            renewed = await asyncio.create_task(engine.renew([job.id]))
    await engine.renew([])

    assert [renewal.job_id for renewal in renewed.renewals] == [job.id]
    assert (await look(services)).counters["rescued"] == 6


async def test_many_who_count_at_once_lose_nothing_at_their_goodbye(services: Services) -> None:
    foremen = [an_engine(services) for _ in range(8)]
    for engine in foremen:
        engine._counters.add(CounterName.RETRIED, 3)
    await asyncio.gather(*(engine.deregister() for engine in foremen))

    assert (await look(services)).counters["retried"] == 24
