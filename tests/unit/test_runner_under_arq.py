"""Real arq workers, on a Redis in memory, receive the messages that the queue sends."""

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
from domain.jobs.attempt import Released, RetryIn, Succeeded
from domain.jobs.model import Job, JobMessage
from domain.jobs.transport.job_queue import FUNCTION_NAME, JobQueue, QueueKeys
from domain.settings import Settings
from domain.storage.backends import open_driver
from domain.storage.driver import StorageDriver
from domain.storage.memory import MemoryDriver
from tests.unit.worker_fakes import FakeJobEngine, a_job, a_runner, closed_gate, fake_redis, until
from worker.consumer import ArqConsumer
from worker.main import arq_settings, run_job
from worker.runner import Runner


def settings_for_arq(pool: ArqRedis, **more: Any) -> dict[str, Any]:
    """Return the settings of a real worker, with a Redis in memory and a short poll delay."""
    settings = Settings(redis_url="redis://nowhere", _env_file=None, **more)
    return arq_settings(settings, QueueKeys()) | {"redis_pool": pool, "poll_delay": 0.001}


RunWorker = Callable[[FakeJobEngine, StorageDriver, FakeServer], AbstractAsyncContextManager[Worker]]


def stock(runner: Runner, settings: dict[str, Any]) -> Worker:
    return create_worker(settings, handle_signals=False, ctx={"runner": runner})


@pytest.fixture(params=[stock, ArqConsumer], ids=["stock", "consumer"])
def arq_worker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RunWorker:
    """Run a worker while the block runs: stock arq, or our consumer."""

    async def skip_info(*_: object) -> None:  # fakeredis has no INFO command
        pass

    monkeypatch.setattr("arq.worker.log_redis_info", skip_info)

    @asynccontextmanager
    async def run_worker(engine: FakeJobEngine, driver: StorageDriver, server: FakeServer) -> AsyncIterator[Worker]:
        runner = a_runner(engine, driver, queue=JobQueue(fake_redis(server)))
        arq = request.param(runner, settings_for_arq(fake_redis(server)))
        running = asyncio.create_task(arq.main())
        try:
            yield arq
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await runner.close()
            await asyncio.gather(*arq.tasks.values(), return_exceptions=True)

    return run_worker


async def dispatched(server: FakeServer, jobs: Sequence[Job]) -> JobQueue:
    queue = JobQueue(fake_redis(server))
    await queue.dispatch([for_any_worker(job) for job in jobs])
    return queue


def for_any_worker(job: Job) -> JobMessage:
    """Return a message in the queue from which stock arq fetches."""
    return job.message._replace(backend=None, project_id=None)


async def message_keys(queue: JobQueue) -> set[bytes]:
    """Return the keys of messages, and of nothing else."""
    others = {name(None).encode() for name in (queue.keys.wakeups, queue.keys.turns)}
    return {key for key in await queue.redis.keys("*") if b"health" not in key} - others


async def test_dispatched_jobs_are_run(arq_worker: RunWorker) -> None:
    jobs, server = [a_job() for _ in range(25)], FakeServer()
    engine = FakeJobEngine(*jobs)
    queue = await dispatched(server, jobs)
    async with arq_worker(engine, MemoryDriver(), server):
        await until(lambda: len(engine.settled) == 25)

    assert {job.status for job in jobs} == {"succeeded"}
    assert await message_keys(queue) == set()


async def test_redis_has_no_key_of_a_job_after_its_claim(arq_worker: RunWorker, tmp_path: Path) -> None:
    gate, job, server = closed_gate(tmp_path), a_job(), FakeServer()
    engine = FakeJobEngine(job)
    queue = await dispatched(server, [job])
    async with arq_worker(engine, open_driver(f"faulty+memory:?gate={gate}", 1), server):
        async with asyncio.timeout(10):
            while await message_keys(queue):
                await asyncio.sleep(0.001)
        assert (job.status, engine.settled) == ("running", [])
        gate.unlink()
        await until(lambda: len(engine.settled) == 1)

    assert await message_keys(queue) == set()


async def test_running_jobs_are_not_affected_by_a_flush_of_redis(arq_worker: RunWorker, tmp_path: Path) -> None:
    gate, job, server = closed_gate(tmp_path), a_job(), FakeServer()
    engine = FakeJobEngine(job)
    queue = await dispatched(server, [job])
    async with arq_worker(engine, open_driver(f"faulty+memory:?gate={gate}", 1), server):
        await until(lambda: job.status == "running")
        await queue.redis.flushall()
        gate.unlink()
        await until(lambda: len(engine.settled) == 1)

    assert isinstance(engine.settled[0], Succeeded)


async def test_message_of_an_old_epoch_claims_nothing(arq_worker: RunWorker) -> None:
    job, server = a_job(), FakeServer()
    outdated = for_any_worker(job)
    job.epoch = 1
    engine, queue = FakeJobEngine(job), JobQueue(fake_redis(server))
    await queue.dispatch([outdated])
    async with arq_worker(engine, MemoryDriver(), server):
        await until(lambda: engine.claims == [outdated])

    assert (engine.settled, job.status) == ([], "queued")
    assert await message_keys(queue) == set()


async def test_retried_job_leaves_no_message_of_arq(arq_worker: RunWorker) -> None:
    job, server = a_job(), FakeServer()
    engine = FakeJobEngine(job)
    queue = await dispatched(server, [job])
    async with arq_worker(engine, open_driver("faulty+memory:?fail=*:storage-unavailable", 1), server):
        await until(lambda: len(engine.settled) == 1)

    assert isinstance(engine.settled[0], RetryIn)
    assert await message_keys(queue) == set()


@pytest.mark.parametrize("arq_worker", [stock], indirect=True)
async def test_job_is_released_when_arq_cancels_its_task(arq_worker: RunWorker, tmp_path: Path) -> None:
    gate, job, server = closed_gate(tmp_path), a_job(), FakeServer()
    engine = FakeJobEngine(job)
    await dispatched(server, [job])
    async with arq_worker(engine, open_driver(f"faulty+memory:?gate={gate}", 1), server) as arq:
        await until(lambda: job.status == "running")
        for task in arq.tasks.values():
            task.cancel()
        await until(lambda: len(engine.settled) == 1)

    assert engine.settled == [Released()]


@pytest.mark.parametrize(
    "message", [b"\x80\x04N.", b"not json", b'{"f": "other", "a": [], "k": {}, "t": null, "et": 1}']
)
async def test_invalid_or_foreign_message_is_discarded(arq_worker: RunWorker, message: bytes) -> None:
    job, server = a_job(), FakeServer()
    engine, queue = FakeJobEngine(job), JobQueue(fake_redis(server))
    await queue.redis.set(job_key_prefix + "foreign", message)
    await queue.redis.zadd(queue.keys.queue(None), {"foreign": 1})
    await queue.dispatch([for_any_worker(job)])
    async with arq_worker(engine, MemoryDriver(), server):
        await until(lambda: len(engine.settled) == 1)
        async with asyncio.timeout(10):
            while await message_keys(queue):
                await asyncio.sleep(0.001)


def test_arq_keeps_no_results_and_has_no_job_timeout() -> None:
    settings = settings_for_arq(fake_redis(), max_jobs=3)

    assert (settings["keep_result"], settings["job_timeout"], settings["max_jobs"]) == (0, None, 3)
    assert [function.name for function in settings["functions"]] == [FUNCTION_NAME]
    assert settings["job_serializer"]({"a": 1}) == b'{"a": 1}'


def test_importing_the_worker_reads_no_settings() -> None:
    assert "WorkerSettings" not in vars(worker.main)
    with pytest.raises(AttributeError):
        _ = worker.main.no_such_name


async def test_run_job_passes_the_dispatch_on() -> None:
    handled: list[JobMessage] = []

    class RecordingRunner:
        async def handle(self, message: JobMessage) -> None:
            handled.append(message)

    job = a_job()
    await run_job({"runner": RecordingRunner()}, str(job.id), 4)

    assert handled == [JobMessage(job.id, 4)]
