"""The rounds: rescue only when it is sure, ring what is due, find what is lost, and never give up."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from sqlalchemy import true

from domain.errors import DatabaseUnavailable
from domain.jobs.store.retention import Pruned
from domain.jobs.transport.job_queue import QueueUnavailable
from domain.maintenance_tasks import MaintenanceTask
from tests.unit.worker_fakes import FakeJobEngine, until
from worker.heartbeat import Heartbeat
from worker.maintenance import Maintenance


def a_heartbeat(*, beating: bool) -> Heartbeat:
    heartbeat = Heartbeat(FakeJobEngine(), {}, lease=15, stall=60)
    heartbeat._is_beating = beating
    return heartbeat


def a_house(
    engine: FakeJobEngine,
    heartbeat: Heartbeat,
    prune: Callable[[], Awaitable[Pruned]] | None = None,
    *,
    seen: Sequence[bool] = (True, True, True),
    interval: float = 1,
) -> Maintenance:
    """One with three errands, of which so many are ``seen`` to be needed."""
    errands = (
        MaintenanceTask("rescued", engine.rescue, true(), requires_heartbeat=True),
        MaintenanceTask("due", engine.dispatch_due, true()),
        MaintenanceTask("lost", engine.redispatch_lost, true()),
    )

    async def look() -> Sequence[tuple[MaintenanceTask, bool]]:
        return list(zip(errands, seen, strict=True))

    return Maintenance(look, heartbeat, prune or nothing_old, interval=interval)


async def nothing_old() -> Pruned:
    return Pruned(0, more=False)


class Old:
    """So much is old that it takes several rounds; counts them."""

    def __init__(self, rounds: int) -> None:
        self.rounds = 0
        self._needed = rounds

    async def prune(self) -> Pruned:
        self.rounds += 1
        return Pruned(10, more=self.rounds < self._needed)


class Rescuing(FakeJobEngine):
    """One that finds somebody to rescue."""

    async def rescue(self) -> int:
        return 1 + await super().rescue()


class Failing(FakeJobEngine):
    """Its first rounds fail, each with the next error."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self._errors = list(errors)

    async def redispatch_lost(self) -> int:
        if self._errors:
            raise self._errors.pop(0)
        return await super().redispatch_lost()


async def test_a_round_rescues_and_rings() -> None:
    engine = FakeJobEngine()
    await a_house(engine, a_heartbeat(beating=True)).run_once()

    assert engine.rounds == ["rescue", "ring_due", "ring_lost"]


async def test_nobody_is_rescued_by_a_worker_that_does_not_beat() -> None:
    engine = FakeJobEngine()
    await a_house(engine, a_heartbeat(beating=False)).run_once()

    assert engine.rounds == ["ring_due", "ring_lost"]


async def test_nothing_is_done_that_is_not_seen_to_be_needed() -> None:
    engine = FakeJobEngine()
    await a_house(engine, a_heartbeat(beating=True), seen=(False, True, False)).run_once()

    assert engine.rounds == ["ring_due"]


async def test_what_an_errand_may_have_made_needful_is_done_in_the_same_round() -> None:
    engine = Rescuing()
    await a_house(engine, a_heartbeat(beating=True), seen=(True, False, False)).run_once()

    assert engine.rounds == ["rescue", "ring_due", "ring_lost"]


@pytest.mark.parametrize("error", [QueueUnavailable(), DatabaseUnavailable(), ValueError("a bug")])
async def test_a_round_that_fails_is_followed_by_the_next(error: Exception) -> None:
    engine = Failing(error)
    rounds = asyncio.create_task(a_house(engine, a_heartbeat(beating=False), interval=0).run_forever())
    await until(lambda: "ring_lost" in engine.rounds)
    rounds.cancel()

    assert engine.rounds[:3] == ["ring_due", "ring_due", "ring_lost"]


async def test_after_an_outage_of_postgresql_nobody_is_rescued_until_the_heart_beats_again() -> None:
    engine, heartbeat = Failing(DatabaseUnavailable()), a_heartbeat(beating=True)
    rounds = asyncio.create_task(a_house(engine, heartbeat, interval=0).run_forever())
    await until(lambda: engine.rounds.count("ring_lost") >= 3)
    rounds.cancel()

    assert engine.rounds.count("rescue") == 1
    assert not heartbeat.is_beating


async def test_an_outage_of_redis_does_not_keep_anybody_from_being_rescued() -> None:
    engine, heartbeat = Failing(QueueUnavailable(), QueueUnavailable()), a_heartbeat(beating=True)
    rounds = asyncio.create_task(a_house(engine, heartbeat, interval=0).run_forever())
    await until(lambda: "ring_lost" in engine.rounds)
    rounds.cancel()

    assert engine.rounds[:6] == ["rescue", "ring_due"] * 3


async def test_between_rounds_it_rests() -> None:
    engine = FakeJobEngine()
    rounds = asyncio.create_task(a_house(engine, a_heartbeat(beating=True), interval=3600).run_forever())
    await until(lambda: "ring_lost" in engine.rounds)
    for _ in range(10):
        await asyncio.sleep(0)
    rounds.cancel()

    assert engine.rounds == ["rescue", "ring_due", "ring_lost"]


async def test_what_is_old_is_pruned_in_every_round_until_there_is_no_more_and_then_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, clock = Old(rounds=3), Clock(monkeypatch)
    maintenance = a_house(FakeJobEngine(), a_heartbeat(beating=True), old.prune)
    seen = []
    for seconds in (0, 2, 2, 2, 2, 50, 10, 2):
        clock.now += seconds
        await maintenance.run_once()
        seen.append(old.rounds)

    assert seen == [1, 2, 3, 3, 3, 3, 4, 4]


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("worker.maintenance.time", self)

    def monotonic(self) -> float:
        return self.now
