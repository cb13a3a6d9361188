"""The supervisor restarts the consumer after failures, drains on a signal, and ends the drain on a second one."""

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

from domain.jobs.attempt import Released, Succeeded
from domain.jobs.transport.job_queue import QueueRefusesWrites
from domain.storage.backends import open_driver
from domain.storage.context import Grant
from domain.storage.memory import MemoryDriver
from tests.unit.worker_fakes import FakeJobEngine, a_job, a_runner, closed_gate, fake_redis, until
from worker import consumer as supervisor_module
from worker.consumer import Supervisor
from worker.runner import Runner


class FakeArq:
    """A consumer without messages. Its first instances fail with the given errors, the others run until cancelled."""

    errors: list[Exception]
    instances: list["FakeArq"]

    def __init__(self) -> None:
        self.allow_pick_jobs = True
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.pool = fake_redis()
        self.health_check_key = "health"
        self.instances.append(self)

    async def main(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        await asyncio.Event().wait()


def fake_arq(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> list[FakeArq]:
    """Replace the consumer by a fake; return the list of its instances."""
    instances: list[FakeArq] = []

    class Arq(FakeArq):
        pass

    Arq.errors, Arq.instances = list(errors), instances

    monkeypatch.setattr(supervisor_module, "ArqConsumer", lambda *_: Arq())
    monkeypatch.setattr(supervisor_module, "_RECONNECT_SECONDS", 0)
    return instances


def an_idle_runner() -> Runner:
    return a_runner(FakeJobEngine(), MemoryDriver())


async def stop(supervisor: Supervisor, run: asyncio.Task[None]) -> None:
    supervisor._on_signal()
    async with asyncio.timeout(5):
        await run


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), OSError("gone"), ValueError("a bug")])
async def test_failed_consumer_is_restarted(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    instances = fake_arq(monkeypatch, error, error)
    supervisor = Supervisor(an_idle_runner(), {}, drain=5)
    run = asyncio.create_task(supervisor.run())
    await until(lambda: len(instances) == 3)
    await stop(supervisor, run)

    assert len(instances) == 3


async def test_tasks_of_a_failed_consumer_end_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of these tasks reports its end to a Redis that is gone; asyncio would log a traceback for every one."""
    unhandled = list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    instances = fake_arq(monkeypatch)
    fail, finish = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(FakeArq, "main", failing_main(fail, instances))

    async def report_end() -> None:
        await finish.wait()
        raise RedisConnectionError

    supervisor = Supervisor(an_idle_runner(), {}, drain=5)
    run = asyncio.create_task(supervisor.run())
    await until(lambda: bool(instances))
    instances[0].tasks["message"] = asyncio.create_task(report_end())
    fail.set()
    await until(lambda: len(instances) == 2)
    finish.set()
    await until(instances[0].tasks["message"].done)
    await stop(supervisor, run)
    instances[0].tasks.clear()
    gc.collect()

    assert unhandled == []


async def test_refused_writes_are_logged_once_and_waited_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    instances = fake_arq(monkeypatch, ReadOnlyError("You can't write against a read only replica."))
    runner, pings = an_idle_runner(), list[None]()

    async def ping(_backends: object) -> None:
        pings.append(None)
        if len(pings) < 5:
            raise QueueRefusesWrites
        runner.queue.write_errors.clear()

    monkeypatch.setattr(runner.queue, "ping", ping)
    supervisor = Supervisor(runner, {}, drain=5)
    run = asyncio.create_task(supervisor.run())
    await until(lambda: len(instances) == 2)
    await stop(supervisor, run)

    assert len(pings) == 5
    assert caplog.text.count("redis.refuses_writes") == caplog.text.count("redis.writable_again") == 1
    assert "REPLICAOF NO ONE" in caplog.text


async def test_replica_that_other_connections_have_left_is_not_logged_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The consumer's own connection may be the last to the former primary."""
    refused = ReadOnlyError("You can't write against a read only replica.")
    instances, runner = fake_arq(monkeypatch, refused), an_idle_runner()
    runner.queue.write_errors.note(refused)
    supervisor = Supervisor(runner, {}, drain=5)
    run = asyncio.create_task(supervisor.run())
    await until(lambda: len(instances) == 2)
    await stop(supervisor, run)

    assert caplog.text.count("redis.refuses_writes") == caplog.text.count("redis.writable_again") == 1


async def test_both_signals_stop_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    instances = fake_arq(monkeypatch)
    signal_handlers: dict[int, Any] = {}
    monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", signal_handlers.__setitem__)
    supervisor = Supervisor(an_idle_runner(), {}, drain=5)
    run = asyncio.create_task(supervisor.run())
    await until(lambda: bool(instances))
    assert set(signal_handlers) == {signal.SIGTERM, signal.SIGINT}
    signal_handlers[signal.SIGTERM]()
    async with asyncio.timeout(5):
        await run


async def test_first_signal_drains_and_fetches_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    instances, gate, job = fake_arq(monkeypatch), closed_gate(tmp_path), a_job()
    engine = FakeJobEngine(job)
    runner = a_runner(engine, open_driver(f"faulty+memory:?gate={gate}", 1))
    supervisor = Supervisor(runner, {}, drain=3600)
    run = asyncio.create_task(supervisor.run())
    handling = asyncio.create_task(runner.handle(job.message))
    await until(lambda: job.id in runner.running)
    supervisor._on_signal()
    await until(lambda: not instances[0].allow_pick_jobs)
    assert not run.done()
    gate.unlink()
    async with asyncio.timeout(5):
        await run

    assert isinstance(engine.settled[0], Succeeded)
    assert handling.done()


async def test_second_signal_releases_jobs_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    instances, job = fake_arq(monkeypatch), a_job()
    engine = FakeJobEngine(job)
    runner = a_runner(engine, open_driver(f"faulty+memory:?gate={closed_gate(tmp_path)}", 1))
    supervisor = Supervisor(runner, {}, drain=3600)
    run = asyncio.create_task(supervisor.run())
    handling = asyncio.create_task(runner.handle(job.message))
    await until(lambda: job.id in runner.running)
    supervisor._on_signal()
    await until(lambda: not instances[0].allow_pick_jobs)
    await stop(supervisor, run)
    await handling

    assert engine.settled == [Released()]


async def test_jobs_that_outlast_the_drain_are_released(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_arq(monkeypatch)
    job = a_job()
    engine = FakeJobEngine(job)
    runner = a_runner(engine, open_driver(f"faulty+memory:?gate={closed_gate(tmp_path)}", 1))
    supervisor = Supervisor(runner, {}, drain=0.01)
    run = asyncio.create_task(supervisor.run())
    handling = asyncio.create_task(runner.handle(job.message))
    await until(lambda: job.id in runner.running)
    await stop(supervisor, run)
    await handling

    assert engine.settled == [Released()]


class HungDriver(MemoryDriver):
    """Storage that responds only when the test lets it, and does not check its grant before."""

    def __init__(self) -> None:
        super().__init__()
        self.may_respond = asyncio.Event()

    async def create(self, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        await self.may_respond.wait()
        return await super().create(volume_id, size, grant)


async def test_worker_exits_with_an_error_if_storage_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_arq(monkeypatch)
    monkeypatch.setattr(supervisor_module, "RELEASE_SECONDS", 0.01)
    job, driver = a_job(), HungDriver()
    runner = a_runner(FakeJobEngine(job), driver)
    exit_statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", exit_statuses.append)
    supervisor = Supervisor(runner, {}, drain=0)
    run = asyncio.create_task(supervisor.run())
    handling = asyncio.create_task(runner.handle(job.message))
    await until(lambda: job.id in runner.running)
    await stop(supervisor, run)
    driver.may_respond.set()
    await handling

    assert exit_statuses == [os.EX_TEMPFAIL]
    assert str(job.id) in next(line for line in caplog.text.splitlines() if "worker.forced_exit" in line)


async def test_consumer_restarted_during_the_drain_fetches_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instances, gate, job = fake_arq(monkeypatch), closed_gate(tmp_path), a_job()
    runner = a_runner(FakeJobEngine(job), open_driver(f"faulty+memory:?gate={gate}", 1))
    fail = asyncio.Event()
    monkeypatch.setattr(FakeArq, "main", failing_main(fail, instances))
    supervisor = Supervisor(runner, {}, drain=3600)
    run = asyncio.create_task(supervisor.run())
    handling = asyncio.create_task(runner.handle(job.message))
    await until(lambda: job.id in runner.running)
    supervisor._on_signal()
    await until(lambda: not instances[0].allow_pick_jobs)
    fail.set()
    await until(lambda: len(instances) == 2)
    allowed = instances[1].allow_pick_jobs
    gate.unlink()
    async with asyncio.timeout(5):
        await run
    await handling

    assert not allowed


def failing_main(fail: asyncio.Event, instances: list[FakeArq]) -> Any:
    async def main(self: FakeArq) -> None:
        await fail.wait()
        if self is instances[0]:
            raise RedisConnectionError
        await asyncio.Event().wait()

    return main


async def test_worker_stops_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    instances = fake_arq(monkeypatch)
    supervisor = Supervisor(an_idle_runner(), {}, drain=5)
    run = asyncio.create_task(supervisor.run())
    await until(lambda: bool(instances))

    async def raise_connection_error(*_: object) -> None:
        raise RedisConnectionError

    monkeypatch.setattr(instances[0].pool, "delete", raise_connection_error)
    await stop(supervisor, run)


async def test_health_key_is_deleted_when_the_worker_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    instances = fake_arq(monkeypatch)
    supervisor = Supervisor(an_idle_runner(), {}, drain=5)
    run = asyncio.create_task(supervisor.run())
    await until(lambda: bool(instances))
    deleted: list[str] = []

    async def delete(*keys: str) -> None:
        deleted.extend(keys)

    monkeypatch.setattr(instances[0].pool, "delete", delete)
    await stop(supervisor, run)

    assert deleted == ["health"]
