"""Waiting for a job ends with an announcement, a poll of PostgreSQL, or a timeout."""

import asyncio
import time

import pytest

from domain.jobs import watcher as watcher_module
from domain.jobs.attempt import Succeeded
from domain.jobs.model import Job
from domain.jobs.watcher import Watcher
from domain.services import Services, open_services
from tests.integration.job_builders import MIB, NO_REDIS, a_queued_expand, an_engine, set_job, until


async def end(services: Services, job: Job) -> None:
    """Claim the job and settle it."""
    engine = an_engine(services)
    claim = await engine.claim(job.message)
    assert claim is not None
    await engine.settle(claim.job, Succeeded({"size": 2 * MIB}))


async def until_subscribed(services: Services) -> None:
    async def has_subscriber() -> bool:
        ((_, subscribers),) = await services.queue.redis.pubsub_numsub(services.queue.keys.changes)
        return bool(subscribers)

    await until(has_subscriber)


def disable_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher_module, "_POLL_SECONDS", 3600)


async def until_watched(watcher: Watcher) -> None:
    async def has_watch() -> bool:
        return bool(watcher._watched)

    await until(has_watch)


async def test_announcement_of_the_end_wakes_a_waiting_client(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    disable_polling(monkeypatch)
    job = await a_queued_expand(services)
    async with services.watcher.watching():
        await until_subscribed(services)
        waiting = asyncio.create_task(services.watcher.ended(job.id, 3600))
        await until_watched(services.watcher)
        await end(services, job)
        async with asyncio.timeout(5):
            await waiting


async def test_cancellation_is_announced(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    disable_polling(monkeypatch)
    job = await a_queued_expand(services)
    async with services.watcher.watching():
        await until_subscribed(services)
        waiting = asyncio.create_task(services.watcher.ended(job.id, 3600))
        await until_watched(services.watcher)
        await services.jobs.cancel(job.id)
        async with asyncio.timeout(5):
            await waiting


async def test_poll_finds_the_end_without_redis(services: Services) -> None:
    job = await a_queued_expand(services)
    settings = services.settings.model_copy(update={"redis_url": NO_REDIS})
    async with open_services(settings, adopt=True) as without_redis, without_redis.watcher.watching():
        waiting = asyncio.create_task(without_redis.watcher.ended(job.id, 3600))
        await until_watched(without_redis.watcher)
        await end(services, job)
        async with asyncio.timeout(5):
            await waiting


async def test_unannounced_end_is_found(services: Services) -> None:
    job = await a_queued_expand(services)
    async with services.watcher.watching():
        waiting = asyncio.create_task(services.watcher.ended(job.id, 3600))
        await until_watched(services.watcher)
        await set_job(services, job.id, "status = 'failed', finished_at = now(), version = version + 1")
        async with asyncio.timeout(5):
            await waiting


async def test_wait_ends_after_its_timeout(services: Services) -> None:
    job = await a_queued_expand(services)
    began = time.monotonic()
    async with services.watcher.watching():
        await services.watcher.ended(job.id, 0.2)

    assert 0.2 <= time.monotonic() - began < 5


async def test_ended_job_is_not_waited_for(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    disable_polling(monkeypatch)
    job = await a_queued_expand(services)
    await end(services, job)
    async with asyncio.timeout(5), services.watcher.watching():
        await services.watcher.ended(job.id, 3600)


async def test_waits_that_time_out_leave_no_connection_open(services: Services) -> None:
    job = await a_queued_expand(services)
    async with services.watcher.watching():
        await asyncio.gather(*(services.watcher.ended(job.id, 0.01) for _ in range(100)))

    await services.database.ping()
    assert services.database._engine.pool.status().endswith("Current Checked out connections: 0")
