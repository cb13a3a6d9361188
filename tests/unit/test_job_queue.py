"""The doorbell: the same ring twice is one message, and nobody relies on any of them."""

import asyncio
import json
from uuid import UUID, uuid4

import pytest
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from fakeredis import FakeServer

from domain.jobs.model import Dispatch
from domain.jobs.transport.job_queue import QUEUE_NAME, JobQueue, QueueUnavailable
from domain.jobs.transport.messages import message_id
from tests.unit.worker_fakes import fake_redis, until


def a_queue(server: FakeServer | None = None) -> JobQueue:
    return JobQueue(fake_redis(server))


def dispatches(count: int) -> list[Dispatch]:
    return [Dispatch(uuid4(), number) for number in range(count)]


def unreachable() -> FakeServer:
    server = FakeServer()
    server.connected = False
    return server


async def messages(queue: JobQueue) -> set[str]:
    return {message.decode() for message in await queue.redis.zrange(QUEUE_NAME, 0, -1)}


async def test_a_message_is_json_and_carries_the_id_and_the_ring_and_nothing_else() -> None:
    queue, dispatch = a_queue(), Dispatch(UUID(int=7), 3)
    await queue.dispatch([dispatch])
    raw = await queue.redis.get(job_key_prefix + message_id(dispatch))

    assert raw is not None
    message = json.loads(raw)
    assert isinstance(message.pop("et"), int)
    assert message == {"t": None, "f": "run_job", "a": [str(UUID(int=7)), 3], "k": {}}


async def test_ringing_twice_is_ringing_once() -> None:
    queue, dispatch = a_queue(), Dispatch(uuid4(), 1)
    await queue.dispatch([dispatch])
    await queue.dispatch([dispatch])

    assert await messages(queue) == {message_id(dispatch)}


async def test_another_ring_of_the_same_job_is_another_message() -> None:
    queue, job_id = a_queue(), uuid4()
    await queue.dispatch([Dispatch(job_id, 1), Dispatch(job_id, 2)])

    assert await messages(queue) == {f"{job_id}:1", f"{job_id}:2"}


async def test_what_has_no_message_is_missing() -> None:
    queue, many = a_queue(), dispatches(5)
    await queue.dispatch(many[:2])

    assert await queue.missing(many) == many[2:]


async def test_after_everything_was_flushed_everything_is_missing() -> None:
    queue, many = a_queue(), dispatches(5)
    await queue.dispatch(many)
    await queue.redis.flushall()

    assert await queue.missing(many) == many


async def test_an_acknowledged_ring_leaves_nothing_behind() -> None:
    queue, (mine, other) = a_queue(), dispatches(2)
    await queue.dispatch([mine, other])
    for prefix in (retry_key_prefix, in_progress_key_prefix):
        await queue.redis.set(prefix + message_id(mine), 1)
    await queue.acknowledge(mine)

    assert await messages(queue) == {message_id(other)}
    assert not await queue.redis.keys(f"*{mine.job_id}*")


async def test_a_ring_that_was_acknowledged_can_be_rung_again() -> None:
    queue, (dispatch,) = a_queue(), dispatches(1)
    await queue.dispatch([dispatch])
    await queue.acknowledge(dispatch)
    await queue.dispatch([dispatch])

    assert await messages(queue) == {message_id(dispatch)}


async def test_what_is_announced_is_heard() -> None:
    server, job_id = FakeServer(), uuid4()
    announcements = a_queue(server).announcements()
    hearing = asyncio.ensure_future(anext(announcements))
    await until(lambda: any(server.subscribers.values()))
    await a_queue(server).announce(job_id)

    assert await hearing == job_id
    await announcements.aclose()  # type: ignore[attr-defined]


class TestWithoutRedis:
    async def test_ringing_and_announcing_and_acknowledging_are_only_lost(self) -> None:
        queue = a_queue(unreachable())
        await queue.dispatch(dispatches(3))
        await queue.announce(uuid4())
        await queue.acknowledge(*dispatches(1))

    async def test_nobody_knows_what_is_missing(self) -> None:
        with pytest.raises(QueueUnavailable):
            await a_queue(unreachable()).missing(dispatches(1))

    async def test_it_shows_no_sign_of_life(self) -> None:
        with pytest.raises(QueueUnavailable):
            await a_queue(unreachable()).ping()

    async def test_nothing_is_heard(self) -> None:
        with pytest.raises(QueueUnavailable):
            await anext(a_queue(unreachable()).announcements())

    async def test_an_address_where_nothing_listens_is_no_different(self) -> None:
        queue = JobQueue.open("redis://127.0.0.1:1")
        async with asyncio.timeout(2):
            await queue.dispatch(dispatches(500))
            with pytest.raises(QueueUnavailable):
                await queue.missing(dispatches(1))
        await queue.close()


async def test_a_redis_that_is_there_shows_a_sign_of_life() -> None:
    await a_queue().ping()
