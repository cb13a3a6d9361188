"""Maintenance runs the due tasks periodically, rescues only while the heartbeat works, and survives failures."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
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
    """Expired rows for several batches; counts the batches."""

    def __init__(self, batches: int) -> None:
        self.pruned_batches = 0
        self._batches = batches

    async def prune(self) -> Pruned:
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


async def test_expired_rows_are_pruned_in_every_run_while_there_are_more_then_once_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expired, clock = ExpiredRows(batches=3), Clock(monkeypatch)
    maintenance = a_maintenance(FakeJobEngine(), a_heartbeat(beating=True), expired.prune)
    counts = []
    for seconds in (0, 2, 2, 2, 2, 50, 10, 2):
        clock.now += seconds
        await maintenance.run_once()
        counts.append(expired.pruned_batches)

    assert counts == [1, 2, 3, 3, 3, 3, 4, 4]


class Clock:
    """A monotonic clock that only the test advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("worker.maintenance.time", self)

    def monotonic(self) -> float:
        return self.now
