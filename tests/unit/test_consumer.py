"""The consumer fetches messages in batches, at once, and skips reserved ones; other messages are left to arq."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import structlog
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix
from arq.utils import timestamp_ms
from arq.worker import func
from fakeredis import FakeServer

import worker.consumer
from domain.jobs.engine import Claim
from domain.jobs.model import JobMessage
from domain.jobs.transport.job_queue import FUNCTION_NAME, JobQueue, deserialize, message_id, serialize
from domain.storage.memory import MemoryDriver
from tests.unit.worker_fakes import QUEUE_NAME, WAKEUPS, FakeJobEngine, a_job, a_runner, fake_redis, until
from worker.consumer import ArqConsumer
from worker.main import run_job


def messages(count: int) -> list[JobMessage]:
    return [a_job().message for _ in range(count)]


def a_consumer(
    server: FakeServer, *jobs: Any, slots: int = 10, engine: FakeJobEngine | None = None, **settings: Any
) -> ArqConsumer:
    engine = engine or FakeJobEngine(*jobs)
    runner = a_runner(engine, MemoryDriver(), queue=JobQueue(fake_redis(server)), slots=slots)
    pool = JobQueue(fake_redis(server)).redis
    common = {
        "queue_name": QUEUE_NAME,
        "redis_pool": pool,
        "job_serializer": serialize,
        "job_deserializer": deserialize,
    }
    consumer = ArqConsumer(runner, {"functions": [func(do_nothing, name="do_nothing")]} | common | settings)
    consumer._pool = pool
    return consumer


async def pending_wakeups(queue: JobQueue) -> int:
    return len(await queue.redis.lrange(WAKEUPS, 0, -1))  # type: ignore[misc]


async def do_nothing(ctx: dict[str, Any]) -> None:
    """Do nothing."""


async def consume_until(condition: Callable[[], bool], consumer: ArqConsumer) -> None:
    """Consume messages until the condition is true."""

    async def poll() -> None:
        while True:
            await consumer._poll_iteration()

    polling = asyncio.create_task(poll())
    await until(condition)
    polling.cancel()
    await asyncio.gather(polling, return_exceptions=True)


async def test_fetch_returns_up_to_the_limit_and_reserves_what_it_returns() -> None:
    server = FakeServer()
    consumer, queue = a_consumer(server, slots=7), JobQueue(fake_redis(server))
    await queue.dispatch(messages(10))

    assert (len(await consumer._fetch(7)), len(await consumer._fetch(7))) == (7, 3)
    assert await consumer._fetch(7) == []


async def test_reserved_messages_are_out_of_the_way_of_other_workers() -> None:
    server = FakeServer()
    one, other, queue = a_consumer(server), a_consumer(server), JobQueue(fake_redis(server))
    await queue.dispatch(messages(10))
    await one._fetch(7)

    assert await queue.redis.zcard(QUEUE_NAME) == 3
    assert len(await other._fetch(7)) == 3


async def test_messages_of_a_worker_that_died_are_fetched_again_first() -> None:
    server = FakeServer()
    dead, alive, queue = a_consumer(server), a_consumer(server), JobQueue(fake_redis(server))
    await queue.dispatch(messages(5))
    lost = [message.id for message in await dead._fetch(2)]
    assert lost[0] not in [message.id for message in await alive._fetch(1)]
    for message_ in lost:  # as if their reservation had expired
        await queue.redis.delete(in_progress_key_prefix + message_.decode())

    assert [message.id for message in await alive._fetch(4)][:2] == lost
    assert await alive._fetch(4) == []


async def test_message_of_a_stock_producer_stays_in_the_queue_while_it_is_reserved() -> None:
    server = FakeServer()
    consumer, pool = a_consumer(server), fake_redis(server)
    pool.job_serializer, pool.default_queue_name = serialize, QUEUE_NAME
    await pool.enqueue_job("do_nothing", _job_id="of-a-stock-producer")

    assert [message.id for message in await consumer._fetch(3)] == [b"of-a-stock-producer"]
    assert await consumer._fetch(3) == []
    assert await pool.zscore(QUEUE_NAME, "of-a-stock-producer") is not None


async def test_fetch_skips_any_number_of_messages_reserved_by_stock_workers() -> None:
    server, dispatched = FakeServer(), messages(150)
    consumer, queue = a_consumer(server), JobQueue(fake_redis(server))
    await queue.dispatch(dispatched[:-1])
    for message in dispatched[:-1]:
        await queue.redis.set(in_progress_key_prefix + message_id(message), 1)
    await queue.dispatch(dispatched[-1:])

    assert [message.id for message in await consumer._fetch(3)] == [message_id(dispatched[-1]).encode()]


async def test_message_that_is_not_due_is_not_fetched() -> None:
    server, (message,) = FakeServer(), messages(1)
    consumer, queue = a_consumer(server), JobQueue(fake_redis(server))
    await queue.dispatch([message])
    await queue.redis.zadd(QUEUE_NAME, {message_id(message): timestamp_ms() + 60_000})

    assert await consumer._fetch(3) == []


async def test_worker_whose_clock_is_half_an_hour_behind_fetches_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    server, (message,) = FakeServer(), messages(1)
    consumer, queue = a_consumer(server), JobQueue(fake_redis(server))
    await queue.dispatch([message])
    monkeypatch.setattr(worker.consumer, "timestamp_ms", lambda: timestamp_ms() - 1_800_000)

    assert len(await consumer._fetch(3)) == 1


async def test_idle_worker_is_woken_by_a_dispatch_and_not_by_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.consumer, "_POLL_SECONDS", 3600)
    server, job = FakeServer(), a_job()
    consumer, queue = a_consumer(server, job), JobQueue(fake_redis(server))
    consuming = asyncio.create_task(consume_until(lambda: job.status == "succeeded", consumer))
    await asyncio.sleep(0.01)
    await queue.dispatch([job.message])
    await consuming

    assert job.status == "succeeded"


async def test_wakeups_are_cleared_only_by_a_fetch_that_leaves_no_messages() -> None:
    server = FakeServer()
    consumer, queue = a_consumer(server), JobQueue(fake_redis(server))
    await queue.dispatch(messages(3))
    await consumer._fetch(2)
    assert await pending_wakeups(queue) == 3
    await consumer._fetch(2)
    assert await pending_wakeups(queue) == 0


async def test_number_of_pending_wakeups_is_limited() -> None:
    queue = JobQueue(fake_redis())
    await queue.dispatch(messages(500))
    await queue.dispatch(messages(500))

    assert await pending_wakeups(queue) == 32


async def test_worker_without_free_capacity_fetches_nothing() -> None:
    server, jobs = FakeServer(), [a_job() for _ in range(20)]
    consumer, queue = a_consumer(server, *jobs, slots=2), JobQueue(fake_redis(server))
    needing_slot, start = [], consumer._runner.start

    def counting_start(messages: Sequence[JobMessage]) -> None:
        start(messages)
        needing_slot.append(consumer._runner.load._needing_slot)

    consumer._runner.start = counting_start  # type: ignore[method-assign]
    await queue.dispatch([job.message for job in jobs])
    await consume_until(lambda: all(job.status == "succeeded" for job in jobs), consumer)

    assert max(needing_slot) == 2


async def test_draining_worker_has_no_capacity() -> None:
    server = FakeServer()
    consumer, queue = a_consumer(server), JobQueue(fake_redis(server))
    await queue.dispatch(messages(1))
    consumer.allow_pick_jobs = False

    assert consumer._free_capacity() == 0


async def test_functions_of_other_producers_are_called_by_arq_itself() -> None:
    server, called = FakeServer(), []

    async def foreign(ctx: dict[str, Any], argument: str) -> None:
        called.append((argument, ctx["job_try"]))

    consumer = a_consumer(server, functions=[func(foreign, name="foreign")])
    await a_producer(server).enqueue_job("foreign", "hello")
    await consume_until(lambda: consumer.jobs_complete == 1, consumer)

    assert called == [("hello", 1)]


async def test_error_in_the_runner_is_logged_and_frees_its_capacity() -> None:
    server, job = FakeServer(), a_job()
    consumer = a_consumer(server, engine=BrokenEngine(job))
    await JobQueue(fake_redis(server)).dispatch([job.message])
    with structlog.testing.capture_logs() as logs:
        await consume_until(lambda: bool(logs), consumer)

    assert {line["event"] for line in logs} == {"job.task_failed"}
    assert consumer._runner.load.capacity == 10


class BrokenEngine(FakeJobEngine):
    """Has a bug in every claim."""

    async def claim(self, message: JobMessage) -> Claim | None:
        raise RuntimeError("broken")


async def test_worker_whose_clock_is_behind_fetches_a_new_message(monkeypatch: pytest.MonkeyPatch) -> None:
    server, (message,) = FakeServer(), messages(1)
    consumer, queue = a_consumer(server), JobQueue(fake_redis(server))
    await queue.dispatch([message])
    monkeypatch.setattr(worker.consumer, "timestamp_ms", lambda: timestamp_ms() - 5000)

    assert len(await consumer._fetch(1)) == 1


@pytest.mark.parametrize("epoch", [2**70, -(2**70), float("inf"), 1.5, "1", None])
async def test_message_with_an_invalid_epoch_is_discarded(epoch: object) -> None:
    server = FakeServer()
    consumer = a_consumer(server, functions=[func(run_job, name=FUNCTION_NAME)])
    await a_producer(server).enqueue_job(FUNCTION_NAME, str(a_job().id), epoch, _job_id="poison")
    with structlog.testing.capture_logs() as logs:
        await consume_until(lambda: bool(logs), consumer)

    assert [(line["event"], line["count"]) for line in logs] == [("messages.discarded", 1)]
    assert await a_producer(server).zcard(QUEUE_NAME) == 0


async def test_dispatch_under_a_custom_message_id_is_handled_and_removed() -> None:
    server, job = FakeServer(), a_job()
    consumer = a_consumer(server, job, functions=[func(run_job, name=FUNCTION_NAME)])
    await a_producer(server).enqueue_job(FUNCTION_NAME, str(job.id), job.epoch, _job_id="mine")
    await consume_until(lambda: consumer.jobs_complete == 1, consumer)

    assert job.status == "succeeded"
    assert await a_producer(server).zcard(QUEUE_NAME) == 0


def a_producer(server: FakeServer) -> ArqRedis:
    return JobQueue(fake_redis(server)).redis
