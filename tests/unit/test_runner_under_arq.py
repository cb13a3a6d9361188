"""A real arq worker on a Redis in memory delivers the messages that the queue rings."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.constants import job_key_prefix
from arq.worker import Worker, create_worker
from fakeredis import FakeServer

import worker.main
from domain.jobs.model import Dispatch, Job
from domain.jobs.outcomes import Released, RetryIn, Succeeded
from domain.jobs.transport.job_queue import QUEUE_NAME, WAKEUPS, JobQueue
from domain.jobs.transport.messages import FUNCTION_NAME
from domain.settings import Settings
from domain.storage.backends import open_driver
from domain.storage.driver import StorageDriver
from domain.storage.memory import MemoryDriver
from tests.unit.worker_fakes import FakeJobEngine, a_job, a_runner, closed_gate, fake_redis, until
from worker.consumer import ArqConsumer
from worker.main import arq_settings, run_job
from worker.runner import Runner


def settings_for_arq(pool: ArqRedis, **more: Any) -> dict[str, Any]:
    """What a real worker tells arq, with a Redis in memory that is asked more often."""
    settings = Settings(redis_url="redis://nowhere", _env_file=None, **more)
    return arq_settings(settings) | {"redis_pool": pool, "poll_delay": 0.001}


Delivering = Callable[[FakeJobEngine, StorageDriver, FakeServer], AbstractAsyncContextManager[Worker]]


def stock(runner: Runner, settings: dict[str, Any]) -> Worker:
    return create_worker(settings, handle_signals=False, ctx={"runner": runner})


@pytest.fixture(params=[stock, ArqConsumer], ids=["arq's own worker", "ours"])
def delivering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Delivering:
    """Have messages delivered as long as the block lasts."""

    async def says_nothing(*_: object) -> None:  # arq asks for INFO, which fakeredis does not have
        pass

    monkeypatch.setattr("arq.worker.log_redis_info", says_nothing)

    @asynccontextmanager
    async def delivering(engine: FakeJobEngine, driver: StorageDriver, server: FakeServer) -> AsyncIterator[Worker]:
        runner = a_runner(engine, driver, queue=JobQueue(fake_redis(server)))
        arq = request.param(runner, settings_for_arq(fake_redis(server)))
        delivery = asyncio.create_task(arq.main())
        try:
            yield arq
        finally:
            delivery.cancel()
            with suppress(asyncio.CancelledError):
                await delivery
            await runner.close()
            await asyncio.gather(*arq.tasks.values(), return_exceptions=True)

    return delivering


async def rung(server: FakeServer, jobs: Sequence[Job]) -> JobQueue:
    queue = JobQueue(fake_redis(server))
    await queue.dispatch([job.dispatch for job in jobs])
    return queue


async def keys(queue: JobQueue) -> set[bytes]:
    """What Redis holds of any message."""
    return {key for key in await queue.redis.keys("*") if b"health" not in key and key != WAKEUPS.encode()}


async def test_a_ring_becomes_a_job_that_is_done(delivering: Delivering) -> None:
    jobs, server = [a_job() for _ in range(25)], FakeServer()
    engine = FakeJobEngine(*jobs)
    queue = await rung(server, jobs)
    async with delivering(engine, MemoryDriver(), server):
        await until(lambda: len(engine.settled) == 25)

    assert {job.status for job in jobs} == {"succeeded"}
    assert await keys(queue) == set()


async def test_after_the_claim_redis_holds_nothing_of_the_job(delivering: Delivering, tmp_path: Path) -> None:
    gate, job, server = closed_gate(tmp_path), a_job(), FakeServer()
    engine = FakeJobEngine(job)
    queue = await rung(server, [job])
    async with delivering(engine, open_driver(f"faulty+memory:?gate={gate}", 1), server):
        async with asyncio.timeout(10):
            while await keys(queue):
                await asyncio.sleep(0.001)
        assert (job.status, engine.settled) == ("running", [])
        gate.unlink()
        await until(lambda: len(engine.settled) == 1)

    assert await keys(queue) == set()


async def test_a_flushed_redis_does_not_disturb_what_is_at_work(delivering: Delivering, tmp_path: Path) -> None:
    gate, job, server = closed_gate(tmp_path), a_job(), FakeServer()
    engine = FakeJobEngine(job)
    queue = await rung(server, [job])
    async with delivering(engine, open_driver(f"faulty+memory:?gate={gate}", 1), server):
        await until(lambda: job.status == "running")
        await queue.redis.flushall()
        gate.unlink()
        await until(lambda: len(engine.settled) == 1)

    assert isinstance(engine.settled[0], Succeeded)


async def test_a_ring_that_comes_late_claims_nothing(delivering: Delivering) -> None:
    job, server = a_job(), FakeServer()
    old = job.dispatch
    job.epoch = 1
    engine, queue = FakeJobEngine(job), JobQueue(fake_redis(server))
    await queue.dispatch([old])
    async with delivering(engine, MemoryDriver(), server):
        await until(lambda: engine.claims == [old])

    assert (engine.settled, job.status) == ([], "queued")
    assert await keys(queue) == set()


async def test_a_job_that_is_to_be_tried_again_leaves_no_message_of_arqs_own(delivering: Delivering) -> None:
    job, server = a_job(), FakeServer()
    engine = FakeJobEngine(job)
    queue = await rung(server, [job])
    async with delivering(engine, open_driver("faulty+memory:?fail=*:storage-unavailable", 1), server):
        await until(lambda: len(engine.settled) == 1)

    assert isinstance(engine.settled[0], RetryIn)
    assert await keys(queue) == set()


@pytest.mark.parametrize("delivering", [stock], indirect=True)
async def test_arq_cancelling_its_task_hands_the_job_back(delivering: Delivering, tmp_path: Path) -> None:
    gate, job, server = closed_gate(tmp_path), a_job(), FakeServer()
    engine = FakeJobEngine(job)
    await rung(server, [job])
    async with delivering(engine, open_driver(f"faulty+memory:?gate={gate}", 1), server) as arq:
        await until(lambda: job.status == "running")
        for task in arq.tasks.values():
            task.cancel()
        await until(lambda: len(engine.settled) == 1)

    assert engine.settled == [Released()]


@pytest.mark.parametrize(
    "message", [b"\x80\x04N.", b"not json", b'{"f": "other", "a": [], "k": {}, "t": null, "et": 1}']
)
async def test_a_message_of_somebody_else_is_thrown_away(delivering: Delivering, message: bytes) -> None:
    job, server = a_job(), FakeServer()
    engine, queue = FakeJobEngine(job), JobQueue(fake_redis(server))
    await queue.redis.set(job_key_prefix + "foreign", message)
    await queue.redis.zadd(QUEUE_NAME, {"foreign": 1})
    await queue.dispatch([job.dispatch])
    async with delivering(engine, MemoryDriver(), server):
        await until(lambda: len(engine.settled) == 1)
        async with asyncio.timeout(10):
            while await keys(queue):
                await asyncio.sleep(0.001)


def test_arq_is_told_to_keep_nothing_and_to_time_nothing_out() -> None:
    settings = settings_for_arq(fake_redis(), max_jobs=3)

    assert (settings["keep_result"], settings["job_timeout"], settings["max_jobs"]) == (0, None, 3)
    assert [function.name for function in settings["functions"]] == [FUNCTION_NAME]
    assert settings["job_serializer"]({"a": 1}) == b'{"a": 1}'


def test_the_worker_reads_no_setting_when_it_is_imported() -> None:
    assert "WorkerSettings" not in vars(worker.main)
    with pytest.raises(AttributeError):
        _ = worker.main.nothing_of_that_name


async def test_a_ring_is_answered_as_it_was_sent() -> None:
    heard: list[Dispatch] = []

    class Ear:
        async def answer(self, dispatch: Dispatch) -> None:
            heard.append(dispatch)

    job = a_job()
    await run_job({"runner": Ear()}, str(job.id), 4)

    assert heard == [Dispatch(job.id, 4)]
