"""Maintenance runs the due tasks periodically, rescues only while the heartbeat works, and survives failures."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
import structlog
from sqlalchemy import true

from domain.errors import DatabaseUnavailable
from domain.jobs.store.retention import Pruned
from domain.jobs.transport.job_queue import QueueUnavailable
from domain.maintenance_tasks import MaintenanceTask
from tests.unit.worker_fakes import STALL, FakeJobEngine, until
from worker.heartbeat import Heartbeat
from worker.maintenance import Maintenance


def a_heartbeat(*, beating: bool) -> Heartbeat:
    heartbeat = Heartbeat(FakeJobEngine(), {}, lease=15, stall=STALL)
    heartbeat._is_beating = beating
    return heartbeat


def a_maintenance(
    engine: FakeJobEngine,
    heartbeat: Heartbeat,
    prune: Callable[[], Awaitable[Pruned]] | None = None,
    *,
    needed: Sequence[bool] = (True, True, True),
    interval: float = 1,
) -> Maintenance:
    """Create the maintenance of three tasks; ``needed`` are the conditions of the tasks."""
    tasks = (
        MaintenanceTask("rescued", engine.rescue, true(), requires_heartbeat=True),
        MaintenanceTask("due", engine.dispatch_due, true()),
        MaintenanceTask("lost", engine.redispatch_lost, true()),
    )

    async def due() -> Sequence[tuple[MaintenanceTask, bool]]:
        return list(zip(tasks, needed, strict=True))

    return Maintenance(due, heartbeat, prune or prune_nothing, interval=interval)


async def prune_nothing() -> Pruned:
    return Pruned(0, more=False)


class ExpiredRows:
    """Expired rows, which are deleted in batches of two seconds each. Counts the batches."""

    def __init__(self, clock: "Clock", *, batches: int) -> None:
        self.pruned_batches = 0
        self._clock = clock
        self._batches = batches

    async def prune(self) -> Pruned:
        self._clock.now += 2
        self.pruned_batches += 1
        return Pruned(10, more=self.pruned_batches < self._batches)


class RescuingEngine(FakeJobEngine):
    """An engine that rescues one job."""

    async def rescue(self) -> int:
        return 1 + await super().rescue()


class FailingEngine(FakeJobEngine):
    """The first calls of its last task fail, each with the next error."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self._errors = list(errors)

    async def redispatch_lost(self) -> int:
        if self._errors:
            raise self._errors.pop(0)
        return await super().redispatch_lost()


async def test_run_calls_the_tasks_in_order() -> None:
    engine = FakeJobEngine()
    await a_maintenance(engine, a_heartbeat(beating=True)).run_once()

    assert engine.maintenance_calls == ["rescue", "dispatch_due", "redispatch_lost"]


async def test_worker_without_a_heartbeat_does_not_rescue() -> None:
    engine = FakeJobEngine()
    await a_maintenance(engine, a_heartbeat(beating=False)).run_once()

    assert engine.maintenance_calls == ["dispatch_due", "redispatch_lost"]


async def test_run_skips_tasks_that_are_not_needed() -> None:
    engine = FakeJobEngine()
    await a_maintenance(engine, a_heartbeat(beating=True), needed=(False, True, False)).run_once()

    assert engine.maintenance_calls == ["dispatch_due"]


async def test_task_that_processed_rows_is_followed_by_all_later_ones() -> None:
    engine = RescuingEngine()
    await a_maintenance(engine, a_heartbeat(beating=True), needed=(True, False, False)).run_once()

    assert engine.maintenance_calls == ["rescue", "dispatch_due", "redispatch_lost"]


@pytest.mark.parametrize("error", [QueueUnavailable(), DatabaseUnavailable(), ValueError("a bug")])
async def test_failed_run_is_followed_by_the_next(error: Exception) -> None:
    engine = FailingEngine(error)
    loop = asyncio.create_task(a_maintenance(engine, a_heartbeat(beating=False), interval=0).run_forever())
    await until(lambda: "redispatch_lost" in engine.maintenance_calls)
    loop.cancel()

    assert engine.maintenance_calls[:3] == ["dispatch_due", "dispatch_due", "redispatch_lost"]


async def test_nothing_is_rescued_after_an_outage_until_the_next_heartbeat() -> None:
    engine, heartbeat = FailingEngine(DatabaseUnavailable()), a_heartbeat(beating=True)
    loop = asyncio.create_task(a_maintenance(engine, heartbeat, interval=0).run_forever())
    await until(lambda: engine.maintenance_calls.count("redispatch_lost") >= 3)
    loop.cancel()

    assert engine.maintenance_calls.count("rescue") == 1
    assert not heartbeat.is_beating


async def test_jobs_are_rescued_during_an_outage_of_redis() -> None:
    engine, heartbeat = FailingEngine(QueueUnavailable(), QueueUnavailable()), a_heartbeat(beating=True)
    loop = asyncio.create_task(a_maintenance(engine, heartbeat, interval=0).run_forever())
    await until(lambda: "redispatch_lost" in engine.maintenance_calls)
    loop.cancel()

    assert engine.maintenance_calls[:6] == ["rescue", "dispatch_due"] * 3


async def test_maintenance_sleeps_between_runs() -> None:
    engine = FakeJobEngine()
    loop = asyncio.create_task(a_maintenance(engine, a_heartbeat(beating=True), interval=3600).run_forever())
    await until(lambda: "redispatch_lost" in engine.maintenance_calls)
    for _ in range(10):
        await asyncio.sleep(0)
    loop.cancel()

    assert engine.maintenance_calls == ["rescue", "dispatch_due", "redispatch_lost"]


async def test_expired_rows_are_pruned_until_none_is_left_then_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, pauses=4)
    expired = ExpiredRows(clock, batches=3)
    with pytest.raises(asyncio.CancelledError):
        await a_maintenance(FakeJobEngine(), a_heartbeat(beating=True), expired.prune).prune_forever()

    # Three batches and two pauses take ten seconds, and the batch that finds nothing takes two.
    assert (clock.paused, expired.pruned_batches) == ([2, 2, 50, 58], 4)


async def test_pruning_of_many_rows_goes_on_and_is_logged_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, pauses=32)
    expired = ExpiredRows(clock, batches=1_000)
    with structlog.testing.capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await a_maintenance(FakeJobEngine(), a_heartbeat(beating=True), expired.prune).prune_forever()

    assert clock.paused == ([2] * 15 + [0]) * 2
    assert [(line["event"], line["count"]) for line in logs] == [("rows.pruned", 160)] * 2


async def test_failed_pruning_is_tried_again_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, pauses=2)

    async def fail() -> Pruned:
        raise DatabaseUnavailable

    with pytest.raises(asyncio.CancelledError):
        await a_maintenance(FakeJobEngine(), a_heartbeat(beating=True), fail).prune_forever()

    assert clock.paused == [60, 60]


async def test_pruning_runs_beside_the_tasks() -> None:
    engine, pruning = FakeJobEngine(), asyncio.Event()

    async def prune() -> Pruned:
        pruning.set()
        await asyncio.Event().wait()
        raise AssertionError

    loop = asyncio.create_task(a_maintenance(engine, a_heartbeat(beating=True), prune, interval=0).run_forever())
    await pruning.wait()
    await until(lambda: engine.maintenance_calls.count("rescue") >= 2)
    loop.cancel()


class Clock:
    """A monotonic clock that only the test and pauses advance; the last of ``pauses`` ends the loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, pauses: int) -> None:
        self.now = 1000.0
        self.paused: list[float] = []
        self._pauses = pauses
        monkeypatch.setattr("worker.maintenance.time", self)
        monkeypatch.setattr("worker.maintenance.asyncio", self)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.now += seconds
        if len(self.paused) == self._pauses:
            raise asyncio.CancelledError
