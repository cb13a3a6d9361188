"""Messages are taken in batches, as soon as they are rung, past what others have; whatever is arq's is left to arq."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix
from arq.utils import timestamp_ms
from arq.worker import func
from fakeredis import FakeServer

import worker.consumer
from domain.jobs.model import Dispatch
from domain.jobs.transport.job_queue import QUEUE_NAME, WAKEUPS, JobQueue
from domain.jobs.transport.messages import FUNCTION_NAME, deserialize, message_id, serialize
from domain.storage.memory import MemoryDriver
from tests.unit.worker_fakes import FakeJobEngine, a_job, a_runner, fake_redis, until
from worker.consumer import ArqConsumer
from worker.main import run_job


def dispatches(count: int) -> list[Dispatch]:
    return [a_job().dispatch for _ in range(count)]


def a_delivery(server: FakeServer, *jobs: Any, slots: int = 10, **settings: Any) -> ArqConsumer:
    runner = a_runner(FakeJobEngine(*jobs), MemoryDriver(), queue=JobQueue(fake_redis(server)), slots=slots)
    pool = JobQueue(fake_redis(server)).redis
    plain = {"queue_name": QUEUE_NAME, "redis_pool": pool, "job_serializer": serialize, "job_deserializer": deserialize}
    delivery = ArqConsumer(runner, {"functions": [func(nothing, name="nothing")]} | plain | settings)
    delivery._pool = pool
    return delivery


async def bell(queue: JobQueue) -> int:
    """For how many idle workers it still rings."""
    return len(await queue.redis.lrange(WAKEUPS, 0, -1))  # type: ignore[misc]


async def nothing(ctx: dict[str, Any]) -> None:
    """Do nothing."""


async def rounds(delivery: ArqConsumer, until_then: Callable[[], bool]) -> None:
    """Have messages delivered until it is so."""

    async def turn() -> None:
        while True:
            await delivery._poll_iteration()

    turning = asyncio.create_task(turn())
    await until(until_then)
    turning.cancel()
    await asyncio.gather(turning, return_exceptions=True)


async def test_as_many_messages_as_there_is_room_for_are_taken_at_once() -> None:
    server = FakeServer()
    delivery, queue = a_delivery(server, slots=7), JobQueue(fake_redis(server))
    await queue.dispatch(dispatches(10))

    assert (len(await delivery._fetch(7)), len(await delivery._fetch(7))) == (7, 3)
    assert await delivery._fetch(7) == []


async def test_what_others_have_is_passed_over_however_much_it_is() -> None:
    server, many = FakeServer(), dispatches(150)
    delivery, queue = a_delivery(server), JobQueue(fake_redis(server))
    await queue.dispatch(many[:-1])
    for dispatch in many[:-1]:
        await queue.redis.set(in_progress_key_prefix + message_id(dispatch), 1)
    await queue.dispatch(many[-1:])

    assert [taken for taken, _ in await delivery._fetch(3)] == [message_id(many[-1]).encode()]


async def test_what_is_due_later_is_left_for_later() -> None:
    server, (dispatch,) = FakeServer(), dispatches(1)
    delivery, queue = a_delivery(server), JobQueue(fake_redis(server))
    await queue.dispatch([dispatch])
    await queue.redis.zadd(QUEUE_NAME, {message_id(dispatch): timestamp_ms() + 60_000})

    assert await delivery._fetch(3) == []


async def test_a_clock_that_is_half_an_hour_behind_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    server, (dispatch,) = FakeServer(), dispatches(1)
    delivery, queue = a_delivery(server), JobQueue(fake_redis(server))
    await queue.dispatch([dispatch])
    monkeypatch.setattr(worker.consumer, "timestamp_ms", lambda: timestamp_ms() - 1_800_000)

    assert len(await delivery._fetch(3)) == 1


async def test_whoever_is_idle_is_woken_by_the_bell_and_not_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.consumer, "_POLL_SECONDS", 3600)
    server, job = FakeServer(), a_job()
    delivery, queue = a_delivery(server, job), JobQueue(fake_redis(server))
    turning = asyncio.create_task(rounds(delivery, lambda: delivery.jobs_complete == 1))
    await asyncio.sleep(0.01)
    await queue.dispatch([job.dispatch])
    await turning

    assert job.status == "succeeded"


async def test_whoever_finds_no_more_messages_silences_the_bell_and_whoever_leaves_some_does_not() -> None:
    server = FakeServer()
    delivery, queue = a_delivery(server), JobQueue(fake_redis(server))
    await queue.dispatch(dispatches(3))
    await delivery._fetch(2)
    assert await bell(queue) == 3
    await delivery._fetch(2)
    assert await bell(queue) == 0


async def test_the_bell_is_not_rung_more_often_than_anybody_can_listen() -> None:
    queue = JobQueue(fake_redis())
    await queue.dispatch(dispatches(500))
    await queue.dispatch(dispatches(500))

    assert await bell(queue) == 32


async def test_whoever_has_no_room_takes_nothing_until_there_is_some() -> None:
    server, jobs = FakeServer(), [a_job() for _ in range(20)]
    delivery, queue = a_delivery(server, *jobs, slots=2), JobQueue(fake_redis(server))
    at_once, start = [], delivery._runner.start

    def watched(dispatch: Dispatch) -> asyncio.Task[None]:
        work = start(dispatch)
        at_once.append(len(delivery._runner._not_settling))
        return work

    delivery._runner.start = watched  # type: ignore[method-assign]
    await queue.dispatch([job.dispatch for job in jobs])
    await rounds(delivery, lambda: all(job.status == "succeeded" for job in jobs))

    assert max(at_once) == 2


async def test_whoever_is_to_end_takes_nothing() -> None:
    server = FakeServer()
    delivery, queue = a_delivery(server), JobQueue(fake_redis(server))
    await queue.dispatch(dispatches(1))
    delivery.allow_pick_jobs = False

    assert delivery._free_capacity() == 0


async def test_a_function_of_somebody_elses_is_called_by_arq_itself() -> None:
    server, called = FakeServer(), []

    async def theirs(ctx: dict[str, Any], word: str) -> None:
        called.append((word, ctx["job_try"]))

    delivery = a_delivery(server, functions=[func(theirs, name="theirs")])
    await a_producer(server).enqueue_job("theirs", "hello")
    await rounds(delivery, lambda: delivery.jobs_complete == 1)

    assert called == [("hello", 1)]


async def test_a_burst_ends_when_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def says_nothing(*_: object) -> None:  # arq asks for INFO, which fakeredis does not have
        pass

    monkeypatch.setattr("arq.worker.log_redis_info", says_nothing)
    server, jobs = FakeServer(), [a_job() for _ in range(5)]
    delivery = a_delivery(server, *jobs, burst=True, poll_delay=0.001)
    await JobQueue(fake_redis(server)).dispatch([job.dispatch for job in jobs])
    await delivery.main()

    assert {job.status for job in jobs} == {"succeeded"}


async def test_a_failure_of_our_own_is_told_and_ends_nothing_else() -> None:
    server, job = FakeServer(), a_job()
    delivery = a_delivery(server, job)

    async def broken(dispatch: Dispatch) -> None:
        raise RuntimeError("broken")

    delivery._runner.run = broken  # type: ignore[method-assign]
    await JobQueue(fake_redis(server)).dispatch([job.dispatch])
    with structlog.testing.capture_logs() as logs:
        await rounds(delivery, lambda: delivery.jobs_failed == 1)

    assert [line["event"] for line in logs] == ["job.task_failed"]
    assert (delivery.tasks, delivery._runner.capacity) == ({}, 10)


async def test_a_worker_whose_clock_is_behind_takes_what_was_rung_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    server, (dispatch,) = FakeServer(), dispatches(1)
    delivery, queue = a_delivery(server), JobQueue(fake_redis(server))
    await queue.dispatch([dispatch])
    monkeypatch.setattr(worker.consumer, "timestamp_ms", lambda: timestamp_ms() - 5000)

    assert len(await delivery._fetch(1)) == 1


@pytest.mark.parametrize("epoch", [2**70, -(2**70), float("inf"), 1.5, "1", None])
async def test_a_ring_that_there_cannot_be_is_given_up(dispatch: object) -> None:
    server = FakeServer()
    delivery = a_delivery(server, functions=[func(run_job, name=FUNCTION_NAME)])
    await a_producer(server).enqueue_job(FUNCTION_NAME, str(a_job().id), dispatch, _job_id="poison")
    await rounds(delivery, lambda: delivery.jobs_failed == 1)

    assert await a_producer(server).zcard(QUEUE_NAME) == 0


async def test_a_ring_under_an_id_of_the_producers_own_is_answered_and_given_up() -> None:
    server, job = FakeServer(), a_job()
    delivery = a_delivery(server, job, functions=[func(run_job, name=FUNCTION_NAME)])
    await a_producer(server).enqueue_job(FUNCTION_NAME, str(job.id), job.epoch, _job_id="mine")
    await rounds(delivery, lambda: delivery.jobs_complete == 1)

    assert job.status == "succeeded"
    assert await a_producer(server).zcard(QUEUE_NAME) == 0


def a_producer(server: FakeServer) -> ArqRedis:
    return JobQueue(fake_redis(server)).redis
