"""The life of a worker process: deliver, deliver again when Redis was away, drain on a signal, hurry on a second."""

import asyncio
import gc
import os
import signal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError

from domain.jobs.outcomes import Released, Succeeded
from domain.jobs.transport.job_queue import QueueRefusesWrites
from domain.storage.backends import open_driver
from domain.storage.context import Grant
from domain.storage.memory import MemoryDriver
from tests.unit.worker_fakes import FakeJobEngine, a_job, a_runner, closed_gate, fake_redis, until
from worker import supervisor as supervisor_module
from worker.runner import Runner
from worker.supervisor import Supervisor


class FakeArq:
    """Delivers nothing; its first lives end as they are told to."""

    endings: list[Exception]
    lives: list["FakeArq"]

    def __init__(self) -> None:
        self.allow_pick_jobs = True
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.pool = fake_redis()
        self.health_check_key = "health"
        self.lives.append(self)

    async def main(self) -> None:
        if self.endings:
            raise self.endings.pop(0)
        await asyncio.Event().wait()


def arq_that_ends(monkeypatch: pytest.MonkeyPatch, *endings: Exception) -> list[FakeArq]:
    """Put a fake in arq's place; returns its lives so far."""
    lives: list[FakeArq] = []

    class Arq(FakeArq):
        pass

    Arq.endings, Arq.lives = list(endings), lives

    monkeypatch.setattr(supervisor_module, "ArqConsumer", lambda *_: Arq())
    monkeypatch.setattr(supervisor_module, "_RECONNECT_SECONDS", 0)
    return lives


def an_idle_runner() -> Runner:
    return a_runner(FakeJobEngine(), MemoryDriver())


async def stopped(supervisor: Supervisor, run: asyncio.Task[None]) -> None:
    supervisor._on_signal()
    async with asyncio.timeout(5):
        await run


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), OSError("gone"), ValueError("a bug")])
async def test_it_delivers_again_when_delivery_broke(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    lives = arq_that_ends(monkeypatch, error, error)
    supervisor = Supervisor(an_idle_runner(), {}, drain=5)
    run = asyncio.create_task(supervisor.run())
    await until(lambda: len(lives) == 3)
    await stopped(supervisor, run)

    assert len(lives) == 3


async def test_what_a_delivery_that_broke_has_left_at_work_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each job at work tells arq of its end, which tells a Redis that is gone: a page of log for each of them."""
    complaints = list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    lives = arq_that_ends(monkeypatch)
    breaks, over = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(FakeArq, "main", until_it(breaks, lives))

    async def last_word() -> None:
        await over.wait()
        raise RedisConnectionError

    supervisor = Supervisor(an_idle_runner(), {}, drain=5)
    run = asyncio.create_task(supervisor.run())
    await until(lambda: bool(lives))
    lives[0].tasks["message"] = asyncio.create_task(last_word())
    breaks.set()
    await until(lambda: len(lives) == 2)
    over.set()
    await until(lives[0].tasks["message"].done)
    await stopped(supervisor, run)
    lives[0].tasks.clear()
    gc.collect()

    assert complaints == []


async def test_redis_refusing_writes_is_said_once_and_then_outlasted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lives = arq_that_ends(monkeypatch, ReadOnlyError("You can't write against a read only replica."))
    runner, pings = an_idle_runner(), list[None]()

    async def ping() -> None:
        pings.append(None)
        if len(pings) < 5:
            raise QueueRefusesWrites
        runner.queue.write_errors.clear()

    monkeypatch.setattr(runner.queue, "ping", ping)
    supervisor = Supervisor(runner, {}, drain=5)
    run = asyncio.create_task(supervisor.run())
    await until(lambda: len(lives) == 2)
    await stopped(supervisor, run)

    assert len(pings) == 5
    assert caplog.text.count("redis.refuses_writes") == caplog.text.count("redis.writable_again") == 1
    assert "REPLICAOF NO ONE" in caplog.text


async def test_both_signals_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    lives = arq_that_ends(monkeypatch)
    heard: dict[int, Any] = {}
    monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", heard.__setitem__)
    supervisor = Supervisor(an_idle_runner(), {}, drain=5)
    run = asyncio.create_task(supervisor.run())
    await until(lambda: bool(lives))
    assert set(heard) == {signal.SIGTERM, signal.SIGINT}
    heard[signal.SIGTERM]()
    async with asyncio.timeout(5):
        await run


async def test_the_first_signal_lets_jobs_end_and_takes_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lives, gate, job = arq_that_ends(monkeypatch), closed_gate(tmp_path), a_job()
    engine = FakeJobEngine(job)
    runner = a_runner(engine, open_driver(f"faulty+memory:?gate={gate}", 1))
    supervisor = Supervisor(runner, {}, drain=3600)
    run = asyncio.create_task(supervisor.run())
    answer = asyncio.create_task(runner.handle(job.dispatch))
    await until(lambda: job.id in runner.running)
    supervisor._on_signal()
    await until(lambda: not lives[0].allow_pick_jobs)
    assert not run.done()
    gate.unlink()
    async with asyncio.timeout(5):
        await run

    assert isinstance(engine.settled[0], Succeeded)
    assert answer.done()


async def test_the_second_signal_has_jobs_handed_back_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lives, job = arq_that_ends(monkeypatch), a_job()
    engine = FakeJobEngine(job)
    runner = a_runner(engine, open_driver(f"faulty+memory:?gate={closed_gate(tmp_path)}", 1))
    supervisor = Supervisor(runner, {}, drain=3600)
    run = asyncio.create_task(supervisor.run())
    answer = asyncio.create_task(runner.handle(job.dispatch))
    await until(lambda: job.id in runner.running)
    supervisor._on_signal()
    await until(lambda: not lives[0].allow_pick_jobs)
    await stopped(supervisor, run)
    await answer

    assert engine.settled == [Released()]


async def test_what_has_not_ended_after_the_drain_is_handed_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arq_that_ends(monkeypatch)
    job = a_job()
    engine = FakeJobEngine(job)
    runner = a_runner(engine, open_driver(f"faulty+memory:?gate={closed_gate(tmp_path)}", 1))
    supervisor = Supervisor(runner, {}, drain=0.01)
    run = asyncio.create_task(supervisor.run())
    answer = asyncio.create_task(runner.handle(job.dispatch))
    await until(lambda: job.id in runner.running)
    await stopped(supervisor, run)
    await answer

    assert engine.settled == [Released()]


class HungDriver(MemoryDriver):
    """Storage that does not answer before it is told to, and does not hear that it is to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()

    async def create(self, volume_id: UUID, size: int, grant: Grant) -> int:
        await self.answers.wait()
        return await super().create(volume_id, size, grant)


async def test_storage_that_hangs_is_left_and_the_exit_code_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arq_that_ends(monkeypatch)
    monkeypatch.setattr(supervisor_module, "RELEASE_SECONDS", 0.01)
    job, driver = a_job(), HungDriver()
    runner = a_runner(FakeJobEngine(job), driver)
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    supervisor = Supervisor(runner, {}, drain=0)
    run = asyncio.create_task(supervisor.run())
    answer = asyncio.create_task(runner.handle(job.dispatch))
    await until(lambda: job.id in runner.running)
    await stopped(supervisor, run)
    driver.answers.set()
    await answer

    assert left == [os.EX_TEMPFAIL]
    assert str(job.id) in next(line for line in caplog.text.splitlines() if "worker.forced_exit" in line)


async def test_redis_coming_back_while_draining_brings_no_new_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lives, gate, job = arq_that_ends(monkeypatch), closed_gate(tmp_path), a_job()
    runner = a_runner(FakeJobEngine(job), open_driver(f"faulty+memory:?gate={gate}", 1))
    breaks = asyncio.Event()
    monkeypatch.setattr(FakeArq, "main", until_it(breaks, lives))
    supervisor = Supervisor(runner, {}, drain=3600)
    run = asyncio.create_task(supervisor.run())
    answer = asyncio.create_task(runner.handle(job.dispatch))
    await until(lambda: job.id in runner.running)
    supervisor._on_signal()
    await until(lambda: not lives[0].allow_pick_jobs)
    breaks.set()
    await until(lambda: len(lives) == 2)
    picks = lives[1].allow_pick_jobs
    gate.unlink()
    async with asyncio.timeout(5):
        await run
    await answer

    assert not picks


def until_it(breaks: asyncio.Event, lives: list[FakeArq]) -> Any:
    async def main(self: FakeArq) -> None:
        await breaks.wait()
        if self is lives[0]:
            raise RedisConnectionError
        await asyncio.Event().wait()

    return main


async def test_without_redis_it_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lives = arq_that_ends(monkeypatch)
    supervisor = Supervisor(an_idle_runner(), {}, drain=5)
    run = asyncio.create_task(supervisor.run())
    await until(lambda: bool(lives))

    async def gone(*_: object) -> None:
        raise RedisConnectionError

    monkeypatch.setattr(lives[0].pool, "delete", gone)
    await stopped(supervisor, run)


async def test_it_gives_its_sign_of_life_up(monkeypatch: pytest.MonkeyPatch) -> None:
    lives = arq_that_ends(monkeypatch)
    supervisor = Supervisor(an_idle_runner(), {}, drain=5)
    run = asyncio.create_task(supervisor.run())
    await until(lambda: bool(lives))
    deleted: list[str] = []

    async def delete(*keys: str) -> None:
        deleted.extend(keys)

    monkeypatch.setattr(lives[0].pool, "delete", delete)
    await stopped(supervisor, run)

    assert deleted == ["health"]
