"""Redis may lose any message: due jobs are dispatched once, and again if their message was lost."""

import asyncio
import time
from collections.abc import Iterator, Sequence

import pytest
import redis
from sqlalchemy import text

from domain.jobs.model import JobMessage
from domain.jobs.transport.job_queue import QueueUnavailable, message_id
from domain.services import Services, open_services
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.integration.job_builders import (
    MIB,
    NO_REDIS,
    a_queued_expand,
    a_volume,
    an_engine,
    queued_jobs,
    row,
    set_job,
    sql,
)
from tests.integration.project_builders import a_project

DISPATCHED_LONG_AGO = "dispatched_at = now() - interval '1 minute'"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A direct connection to Redis."""
    client = redis.Redis.from_url(redis_url)
    yield client
    client.close()


def messages(services: Services, client: redis.Redis) -> set[str]:
    found = client.zrange(services.queue.keys.queue("memory"), 0, -1)
    assert isinstance(found, list)
    return {message.decode() for message in found}


async def test_request_sends_a_message(services: Services, client: redis.Redis) -> None:
    job = await a_queued_expand(services)

    assert messages(services, client) == {f"{job.id}:0"}


async def test_lost_message_is_sent_again_with_the_same_id(services: Services, client: redis.Redis) -> None:
    job = await a_queued_expand(services)
    before = messages(services, client)
    client.flushall()
    await set_job(services, job.id, DISPATCHED_LONG_AGO)

    assert await an_engine(services).maintenance.redispatch_lost() == 1
    assert messages(services, client) == before
    assert (await row(services, job.id)).epoch == 0


async def test_remains_of_a_message_do_not_block_its_redispatch(services: Services, client: redis.Redis) -> None:
    job = await a_queued_expand(services)
    before = messages(services, client)
    client.delete(services.queue.keys.queue("memory"))
    await set_job(services, job.id, DISPATCHED_LONG_AGO)

    assert await an_engine(services).maintenance.redispatch_lost() == 1
    assert messages(services, client) == before


async def test_recent_message_is_not_checked(services: Services, client: redis.Redis) -> None:
    await a_queued_expand(services)
    client.flushall()

    assert await an_engine(services).maintenance.redispatch_lost() == 0


async def test_existing_message_is_not_sent_again(services: Services, client: redis.Redis) -> None:
    job = await a_queued_expand(services)
    await set_job(services, job.id, DISPATCHED_LONG_AGO)

    assert await an_engine(services).maintenance.redispatch_lost() == 0
    assert messages(services, client) == {f"{job.id}:0"}


async def test_message_that_a_worker_acknowledges_meanwhile_is_not_lost(
    services: Services, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, engine, missing = await a_queued_expand(services), an_engine(services), services.queue.missing
    await set_job(services, job.id, DISPATCHED_LONG_AGO)

    async def missing_after_claim(waiting: Sequence[JobMessage]) -> Sequence[JobMessage]:
        assert await engine.claim(job.message) is not None
        await services.queue.acknowledge(job.message)
        return await missing(waiting)

    monkeypatch.setattr(services.queue, "missing", missing_after_claim)

    assert await engine.maintenance.redispatch_lost() == 0
    assert messages(services, client) == set()


async def test_concurrent_sweeps_do_not_duplicate_messages(services: Services, client: redis.Redis) -> None:
    await queued_jobs(services, 50)
    await asyncio.gather(*(an_engine(services).maintenance.redispatch_lost() for _ in range(4)))

    assert len(messages(services, client)) == 50


async def test_one_sweep_redispatches_everything_after_redis_lost_all(services: Services, client: redis.Redis) -> None:
    await queued_jobs(services, 1200)

    # More than that are sent if Redis takes a batch too late: the same sweep finds it missing, and sends it again.
    assert await an_engine(services).maintenance.redispatch_lost() >= 1200
    assert len(messages(services, client)) == 1200


async def test_job_before_its_run_at_is_neither_due_nor_lost(services: Services, client: redis.Redis) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    client.flushall()
    await set_job(services, job.id, f"run_at = now() + interval '1 minute', {DISPATCHED_LONG_AGO}")
    assert await engine.maintenance.redispatch_lost() == 0
    await set_job(services, job.id, "dispatched_at = NULL")

    assert await engine.maintenance.dispatch_due() == 0


async def test_concurrent_sweeps_dispatch_a_due_job_once(services: Services, client: redis.Redis) -> None:
    await queued_jobs(services, 50)
    await sql(services, "UPDATE jobs SET dispatched_at = NULL")
    dispatched = await asyncio.gather(*(an_engine(services).maintenance.dispatch_due() for _ in range(4)))

    assert sum(dispatched) == len(messages(services, client)) == 50


async def test_due_jobs_of_projects_take_turns(services: Services) -> None:
    """Though the jobs of one became due long before, and are more than are read at once."""
    other = (await a_project(services, "other")).id
    await queued_jobs(services, 1300)
    await sql(services, "UPDATE jobs SET dispatched_at = NULL, run_at = now() - interval '1 hour'")
    await queued_jobs(services, 3)
    await sql(
        services,
        "UPDATE jobs SET dispatched_at = NULL, project_id = :other WHERE dispatched_at IS NOT NULL",
        other=other,
    )

    assert await an_engine(services).maintenance.dispatch_due() == 1303
    first = await services.queue.redis.zrange(services.queue.keys.queue("memory"), 0, 9)
    theirs = await sql(services, "SELECT id::text FROM jobs WHERE project_id = :other", other=other)
    assert {f"{job_id}:0".encode() for (job_id,) in theirs} <= set(first)


async def test_locked_rows_are_skipped_without_waiting(services: Services) -> None:
    await queued_jobs(services, 50)
    async with services.database.transaction() as session:
        await session.execute(text("SELECT id FROM jobs LIMIT 10 FOR UPDATE"))
        async with asyncio.timeout(4):
            lost = await asyncio.create_task(an_engine(services).maintenance.redispatch_lost())

    assert lost == 40


async def test_jobs_of_unknown_kinds_are_not_dispatched(services: Services, client: redis.Redis) -> None:
    await queued_jobs(services, 20)
    await sql(
        services,
        "UPDATE jobs SET kind = 'volume.paint', dispatched_at = CASE WHEN random() < 0.5 THEN dispatched_at END",
    )
    engine = an_engine(services)

    assert (await engine.maintenance.dispatch_due(), await engine.maintenance.redispatch_lost()) == (0, 0)
    assert not any(needed for _, needed in await services.maintenance_tasks(engine).due())
    assert messages(services, client) == set()


async def test_running_and_ended_jobs_are_not_dispatched(services: Services, client: redis.Redis) -> None:
    running, ended = await a_queued_expand(services), await a_queued_expand(services)
    engine = an_engine(services)
    assert await engine.claim(running.message) is not None
    await set_job(services, running.id, DISPATCHED_LONG_AGO)
    await set_job(services, ended.id, f"status = 'failed', finished_at = now(), {DISPATCHED_LONG_AGO}")
    client.flushall()

    assert (await engine.maintenance.dispatch_due(), await engine.maintenance.redispatch_lost()) == (0, 0)
    assert messages(services, client) == set()


async def test_request_without_redis_is_accepted_within_a_second_and_dispatched_later(
    services: Services, client: redis.Redis
) -> None:
    async with open_services(services.settings.model_copy(update={"redis_url": NO_REDIS}), adopt=True) as without_redis:
        began = time.monotonic()
        job = await without_redis.volumes.request_create(NewVolume("not-dispatched", MIB))
        duration = time.monotonic() - began
    assert messages(services, client) == set()
    await set_job(services, job.id, DISPATCHED_LONG_AGO)
    await an_engine(services).maintenance.redispatch_lost()

    assert messages(services, client) == {message_id(job.message)}
    assert duration < 1


async def test_every_user_request_works_without_redis(services: Services) -> None:
    async with open_services(services.settings.model_copy(update={"redis_url": NO_REDIS}), adopt=True) as without_redis:
        volume = await a_volume(without_redis)
        expand = await without_redis.volumes.request_expand(volume.id, Growth(by=MIB))
        cancelled = await without_redis.jobs.cancel(expand.id)
        retried = await without_redis.jobs.retry(cancelled.id)
        engine = an_engine(without_redis)

        assert (cancelled.status, retried.status) == ("cancelled", "queued")
        assert await engine.claim(retried.message) is not None
        await set_job(without_redis, retried.id, f"status = 'queued', lease_expires_at = NULL, {DISPATCHED_LONG_AGO}")
        with pytest.raises(QueueUnavailable):
            await engine.maintenance.redispatch_lost()
