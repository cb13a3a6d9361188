"""Whoever waits for a job hears of its end: by an announcement, by a look into PostgreSQL, or by the time."""

import asyncio
import time
from collections.abc import Callable

import pytest

from domain.jobs import watcher as watcher_module
from domain.jobs.model import Job
from domain.jobs.outcomes import Succeeded
from domain.services import Services, open_services
from tests.integration.job_builders import MIB, NO_REDIS, a_queued_expand, an_engine, set_job, until


async def end(services: Services, job: Job) -> None:
    """Have a worker do the job."""
    engine = an_engine(services)
    claim = await engine.claim(job.dispatch)
    assert claim is not None
    await engine.settle(claim.job, Succeeded({"size": 2 * MIB}))


async def listened_to(services: Services) -> None:
    async def somebody_listens() -> bool:
        return bool(await services.queue.redis.pubsub_numsub("cistern:job-changed") != [(b"cistern:job-changed", 0)])

    await until(somebody_listens)


def never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "_POLL_SECONDS", 3600)


async def registered(condition: Callable[[], bool]) -> None:
    async def so() -> bool:
        return condition()

    await until(so)


async def test_an_announcement_wakes_whoever_waits(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    never_looks(monkeypatch)
    job = await a_queued_expand(services)
    async with services.watcher.watching():
        await listened_to(services)
        waiting = asyncio.create_task(services.watcher.ended(job.id, 3600))
        await registered(lambda: bool(services.watcher._watched))
        await end(services, job)
        async with asyncio.timeout(5):
            await waiting


async def test_a_cancellation_is_announced(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    never_looks(monkeypatch)
    job = await a_queued_expand(services)
    async with services.watcher.watching():
        await listened_to(services)
        waiting = asyncio.create_task(services.watcher.ended(job.id, 3600))
        await registered(lambda: bool(services.watcher._watched))
        await services.jobs.cancel(job.id)
        async with asyncio.timeout(5):
            await waiting


async def test_when_redis_is_silent_a_look_finds_it(services: Services) -> None:
    job = await a_queued_expand(services)
    without_redis = services.settings.model_copy(update={"redis_url": NO_REDIS})
    async with open_services(without_redis) as deaf, deaf.watcher.watching():
        waiting = asyncio.create_task(deaf.watcher.ended(job.id, 3600))
        await registered(lambda: bool(deaf.watcher._watched))
        await end(services, job)
        async with asyncio.timeout(5):
            await waiting


async def test_an_end_that_nobody_announced_is_found(services: Services) -> None:
    job = await a_queued_expand(services)
    async with services.watcher.watching():
        waiting = asyncio.create_task(services.watcher.ended(job.id, 3600))
        await registered(lambda: bool(services.watcher._watched))
        await set_job(services, job.id, "status = 'failed', finished_at = now(), version = version + 1")
        async with asyncio.timeout(5):
            await waiting


async def test_whoever_has_waited_long_enough_is_let_go(services: Services) -> None:
    job = await a_queued_expand(services)
    began = time.monotonic()
    async with services.watcher.watching():
        await services.watcher.ended(job.id, 0.2)

    assert 0.2 <= time.monotonic() - began < 5


async def test_what_has_ended_is_not_waited_for(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    never_looks(monkeypatch)
    job = await a_queued_expand(services)
    await end(services, job)
    async with asyncio.timeout(5), services.watcher.watching():
        await services.watcher.ended(job.id, 3600)


async def test_many_waits_that_run_out_leave_no_connection_behind(services: Services) -> None:
    job = await a_queued_expand(services)
    async with services.watcher.watching():
        await asyncio.gather(*(services.watcher.ended(job.id, 0.01) for _ in range(100)))

    await services.database.ping()
    assert services.database._engine.pool.status().endswith("Current Checked out connections: 0")
