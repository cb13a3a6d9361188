"""The doorbell may lose anything: whoever waits in PostgreSQL is rung, once, and again when it was lost."""

import asyncio
import time
from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import text

from domain.jobs.transport.job_queue import QUEUE_NAME, QueueUnavailable
from domain.jobs.transport.messages import message_id
from domain.services import Services, open_services
from domain.volumes.growth import Growth
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

RUNG_LONG_AGO = "dispatched_at = now() - interval '1 minute'"


@pytest.fixture
def bell(redis_url: str) -> Iterator[redis.Redis]:
    """A look into the Redis itself."""
    client = redis.Redis.from_url(redis_url)
    yield client
    client.close()


def messages(bell: redis.Redis) -> set[str]:
    found = bell.zrange(QUEUE_NAME, 0, -1)
    assert isinstance(found, list)
    return {message.decode() for message in found}


async def test_a_request_rings(services: Services, bell: redis.Redis) -> None:
    job = await a_queued_expand(services)

    assert messages(bell) == {f"{job.id}:0"}


async def test_a_message_that_was_lost_is_rung_again_under_the_same_id(services: Services, bell: redis.Redis) -> None:
    job = await a_queued_expand(services)
    before = messages(bell)
    bell.flushall()
    await set_job(services, job.id, RUNG_LONG_AGO)

    assert await an_engine(services).redispatch_lost() == 1
    assert messages(bell) == before
    assert (await row(services, job.id)).epoch == 0


async def test_what_is_left_of_a_message_outside_of_the_queue_does_not_keep_it_from_being_rung(
    services: Services, bell: redis.Redis
) -> None:
    job = await a_queued_expand(services)
    before = messages(bell)
    bell.delete(QUEUE_NAME)
    await set_job(services, job.id, RUNG_LONG_AGO)

    assert await an_engine(services).redispatch_lost() == 1
    assert messages(bell) == before


async def test_a_message_that_may_still_be_on_its_way_is_not_looked_for(services: Services, bell: redis.Redis) -> None:
    await a_queued_expand(services)
    bell.flushall()

    assert await an_engine(services).redispatch_lost() == 0


async def test_a_message_that_is_there_is_not_rung_again(services: Services, bell: redis.Redis) -> None:
    job = await a_queued_expand(services)
    await set_job(services, job.id, RUNG_LONG_AGO)

    assert await an_engine(services).redispatch_lost() == 0
    assert messages(bell) == {f"{job.id}:0"}


async def test_sweeps_at_the_same_time_do_not_double_a_message(services: Services, bell: redis.Redis) -> None:
    await queued_jobs(services, 50)
    await asyncio.gather(*(an_engine(services).redispatch_lost() for _ in range(4)))

    assert len(messages(bell)) == 50


async def test_when_redis_has_lost_everything_one_round_finds_it_all(services: Services, bell: redis.Redis) -> None:
    await queued_jobs(services, 1200)

    assert await an_engine(services).redispatch_lost() == 1200
    assert len(messages(bell)) == 1200


async def test_what_waits_for_its_time_is_neither_due_nor_lost(services: Services, bell: redis.Redis) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    bell.flushall()
    await set_job(services, job.id, f"run_at = now() + interval '1 minute', {RUNG_LONG_AGO}")
    assert await engine.redispatch_lost() == 0
    await set_job(services, job.id, "dispatched_at = NULL")

    assert await engine.dispatch_due() == 0


async def test_what_is_due_is_rung_once_by_many_who_look(services: Services, bell: redis.Redis) -> None:
    await queued_jobs(services, 50)
    await sql(services, "UPDATE jobs SET dispatched_at = NULL")
    dispatched = await asyncio.gather(*(an_engine(services).dispatch_due() for _ in range(4)))

    assert sum(dispatched) == len(messages(bell)) == 50


async def test_what_somebody_else_is_ringing_is_passed_over_without_waiting(services: Services) -> None:
    await queued_jobs(services, 50)
    async with services.database.transaction() as session:
        await session.execute(text("SELECT id FROM jobs LIMIT 10 FOR UPDATE"))
        async with asyncio.timeout(4):
            lost = await asyncio.create_task(an_engine(services).redispatch_lost())

    assert lost == 40


async def test_kinds_that_this_version_does_not_know_are_left_to_those_who_do(
    services: Services, bell: redis.Redis
) -> None:
    await queued_jobs(services, 20)
    await sql(
        services,
        "UPDATE jobs SET kind = 'volume.paint', dispatched_at = CASE WHEN random() < 0.5 THEN dispatched_at END",
    )
    engine = an_engine(services)

    assert (await engine.dispatch_due(), await engine.redispatch_lost()) == (0, 0)
    assert not any(needed for _, needed in await services.maintenance_tasks(engine).due())
    assert messages(bell) == set()


async def test_running_and_ended_jobs_are_not_rung(services: Services, bell: redis.Redis) -> None:
    running, ended = await a_queued_expand(services), await a_queued_expand(services)
    engine = an_engine(services)
    assert await engine.claim(running.dispatch) is not None
    await set_job(services, running.id, RUNG_LONG_AGO)
    await set_job(services, ended.id, f"status = 'failed', finished_at = now(), {RUNG_LONG_AGO}")
    bell.flushall()

    assert (await engine.dispatch_due(), await engine.redispatch_lost()) == (0, 0)
    assert messages(bell) == set()


async def test_without_redis_a_request_is_accepted_within_a_second_and_rung_later(
    services: Services, bell: redis.Redis
) -> None:
    async with open_services(services.settings.model_copy(update={"redis_url": NO_REDIS})) as deaf:
        began = time.monotonic()
        job = await deaf.volumes.request_create(NewVolume("unheard", MIB))
        took = time.monotonic() - began
    assert messages(bell) == set()
    await set_job(services, job.id, RUNG_LONG_AGO)
    await an_engine(services).redispatch_lost()

    assert messages(bell) == {message_id(job.dispatch)}
    assert took < 1


async def test_without_redis_whatever_users_do_is_done(services: Services) -> None:
    async with open_services(services.settings.model_copy(update={"redis_url": NO_REDIS})) as deaf:
        volume = await a_volume(deaf)
        cancelled = await deaf.jobs.cancel((await deaf.volumes.request_expand(volume.id, Growth(by=MIB))).id)
        retried = await deaf.jobs.retry(cancelled.id)
        engine = an_engine(deaf)

        assert (cancelled.status, retried.status) == ("cancelled", "queued")
        assert await engine.claim(retried.dispatch) is not None
        await set_job(deaf, retried.id, f"status = 'queued', lease_expires_at = NULL, {RUNG_LONG_AGO}")
        with pytest.raises(QueueUnavailable):
            await engine.redispatch_lost()
