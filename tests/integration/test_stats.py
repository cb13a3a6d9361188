"""The statistics shown by /readyz: queue depth, age, and the counters that workers store with their heartbeats."""

import asyncio

import pytest
from sqlalchemy import text

from domain.db.database import Database
from domain.errors import DatabaseUnavailable
from domain.jobs import stats as stats_module
from domain.jobs.attempt import Payload, RetryIn
from domain.jobs.stats import CounterName, Stats, StatsCache, StatsRepository
from domain.services import Services
from tests.integration.job_builders import a_queued_expand, an_engine, queued_jobs, run_out, set_job, sql
from tests.integration.test_rescue import a_running_expand

ERROR: Payload = {"code": "storage-unavailable", "detail": "gone"}


async def read_stats(services: Services) -> Stats:
    async with services.database.transaction() as session:
        return await StatsRepository(session).read()


async def test_stats_of_an_idle_installation_are_zero(services: Services) -> None:
    assert await read_stats(services) == Stats(0, None, {"rescued": 0, "retried": 0, "lost_messages": 0})


async def test_queue_depth_counts_due_jobs_dispatched_or_not(services: Services) -> None:
    dispatched, undispatched, later, running = [await a_queued_expand(services) for _ in range(4)]
    await set_job(services, dispatched.id, "run_at = now() - interval '5 minutes', dispatched_at = now()")
    await set_job(services, undispatched.id, "run_at = now() - interval '1 minute', dispatched_at = NULL")
    await set_job(services, later.id, "run_at = now() + interval '1 hour', dispatched_at = NULL")
    await set_job(services, running.id, "status = 'running', started_at = now(), run_at = now() - interval '1 day'")
    stats = await read_stats(services)

    assert stats.queue_depth == 2
    assert stats.oldest_due_seconds is not None
    assert 300 <= stats.oldest_due_seconds < 360


async def test_queue_depth_is_capped(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_module, "MAX_COUNTED", 50)
    await queued_jobs(services, 200)
    await sql(services, "UPDATE jobs SET dispatched_at = NULL WHERE id IN (SELECT id FROM jobs LIMIT 100)")

    assert (await read_stats(services)).queue_depth == 50


async def test_each_half_of_the_queue_is_read_from_its_own_index(services: Services) -> None:
    await queued_jobs(services, 2000)
    await sql(services, "ANALYZE jobs")
    statement = str(stats_module.waiting_query().compile(compile_kwargs={"literal_binds": True}))
    async with services.database.transaction() as session:
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join(row[0] for row in await session.execute(text(f"EXPLAIN {statement}")))

    assert "jobs_due" in plan
    assert "jobs_dispatched" in plan


async def test_stats_are_cached_for_a_second(services: Services) -> None:
    cache = StatsCache(services.database)
    first = await cache.latest()
    await a_queued_expand(services)
    assert await asyncio.gather(*(cache.latest() for _ in range(20))) == [first] * 20
    cache._cached_at -= 1

    assert (await cache.latest() or first) != first


async def test_stats_are_none_without_postgresql() -> None:
    unreachable = Database("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")

    assert await StatsCache(unreachable).latest() is None


async def test_stats_are_none_if_the_query_takes_too_long(services: Services) -> None:
    async with services.database.transaction() as session:
        await session.execute(text("LOCK TABLE counters"))

        assert await asyncio.create_task(StatsCache(services.database, timeout=0.2).latest()) is None


async def test_stats_are_none_after_an_unexpected_error(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    async def crash(*_: object, **__: object) -> Stats:
        raise ValueError("a bug")

    monkeypatch.setattr(StatsRepository, "read", crash)

    assert await StatsCache(services.database).latest() is None


async def test_rescues_retries_and_lost_messages_are_stored_by_the_next_heartbeat(services: Services) -> None:
    engine = an_engine(services)
    orphan, failing, lost = [await a_running_expand(services, an_engine(services)) for _ in range(3)]
    await run_out(services, orphan.id)
    await set_job(services, failing.id, f"worker_id = '{engine._worker.id}'")
    await set_job(
        services, lost.id, "status = 'queued', lease_expires_at = NULL, dispatched_at = now() - interval '1 minute'"
    )
    await engine.maintenance.rescue()
    await engine.settle(failing, RetryIn(60, ERROR))
    await services.queue.redis.flushall()
    await engine.maintenance.redispatch_lost()
    before = (await read_stats(services)).counters
    await engine.renew([])

    assert before == {"rescued": 0, "retried": 0, "lost_messages": 0}
    assert (await read_stats(services)).counters == {"rescued": 1, "retried": 1, "lost_messages": 1}


async def test_free_retry_is_not_counted(services: Services) -> None:
    engine = an_engine(services)
    job = await a_running_expand(services, engine)
    await engine.settle(job, RetryIn(60, ERROR, free=True))

    assert engine._counters.pending() == {}


async def test_stored_counts_are_not_stored_again(services: Services) -> None:
    engine = an_engine(services)
    for _ in range(2):
        engine._counters.add(CounterName.RESCUED, 2)
        await engine.renew([])
        await engine.renew([])

    assert (await read_stats(services)).counters["rescued"] == 4


async def test_counts_that_could_not_be_stored_are_stored_later(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = an_engine(services)
    engine._counters.add(CounterName.RETRIED)

    async def unavailable(*_: object) -> bool:
        raise DatabaseUnavailable

    with monkeypatch.context() as broken:
        broken.setattr(StatsRepository, "add", unavailable)
        with pytest.raises(DatabaseUnavailable):
            await engine.renew([])
    await engine.renew([])

    assert (await read_stats(services)).counters["retried"] == 1


async def test_heartbeat_does_not_wait_for_the_counter_lock(services: Services) -> None:
    engine = an_engine(services)
    job = await a_running_expand(services, engine)
    engine._counters.add(CounterName.RESCUED)
    async with services.database.transaction() as session:
        await StatsRepository(session).add({"rescued": 5})
        async with asyncio.timeout(4):
            renewed = await asyncio.create_task(engine.renew([job.id]))
    await engine.renew([])

    assert [renewal.job_id for renewal in renewed.renewals] == [job.id]
    assert (await read_stats(services)).counters["rescued"] == 6


async def test_concurrent_shutdowns_lose_no_counts(services: Services) -> None:
    engines = [an_engine(services) for _ in range(8)]
    for engine in engines:
        engine._counters.add(CounterName.RETRIED, 3)
    await asyncio.gather(*(engine.deregister() for engine in engines))

    assert (await read_stats(services)).counters["retried"] == 24
