"""The rounds: rescue only when it is sure, ring what is due, find what is lost, and never give up."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from sqlalchemy import true

from domain.errands import Errand
from domain.errors import DatabaseUnavailable
from domain.jobs.queue import QueueUnavailable
from domain.jobs.retention import Pruned
from tests.unit.worker_fakes import FakeForeman, until
from worker.heartbeat import Heartbeat
from worker.housekeeping import Housekeeping


def a_heartbeat(*, beating: bool) -> Heartbeat:
    heartbeat = Heartbeat(FakeForeman(), {}, lease=15, stall=60)
    heartbeat._is_beating = beating
    return heartbeat


def a_house(
    foreman: FakeForeman,
    heartbeat: Heartbeat,
    prune: Callable[[], Awaitable[Pruned]] | None = None,
    *,
    seen: Sequence[bool] = (True, True, True),
    interval: float = 1,
) -> Housekeeping:
    """One with three errands, of which so many are ``seen`` to be needed."""
    errands = (
        Errand("rescued", foreman.rescue, true(), only_while_beating=True),
        Errand("due", foreman.ring_due, true()),
        Errand("lost", foreman.ring_lost, true()),
    )

    async def look() -> Sequence[tuple[Errand, bool]]:
        return list(zip(errands, seen, strict=True))

    return Housekeeping(look, heartbeat, prune or nothing_old, interval=interval)


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


class Rescuing(FakeForeman):
    """One that finds somebody to rescue."""

    async def rescue(self) -> int:
        return 1 + await super().rescue()


class Failing(FakeForeman):
    """Its first rounds fail, each with the next error."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self._errors = list(errors)

    async def ring_lost(self) -> int:
        if self._errors:
            raise self._errors.pop(0)
        return await super().ring_lost()


async def test_a_round_rescues_and_rings() -> None:
    foreman = FakeForeman()
    await a_house(foreman, a_heartbeat(beating=True)).go_round()

    assert foreman.rounds == ["rescue", "ring_due", "ring_lost"]


async def test_nobody_is_rescued_by_a_worker_that_does_not_beat() -> None:
    foreman = FakeForeman()
    await a_house(foreman, a_heartbeat(beating=False)).go_round()

    assert foreman.rounds == ["ring_due", "ring_lost"]


async def test_nothing_is_done_that_is_not_seen_to_be_needed() -> None:
    foreman = FakeForeman()
    await a_house(foreman, a_heartbeat(beating=True), seen=(False, True, False)).go_round()

    assert foreman.rounds == ["ring_due"]


async def test_what_an_errand_may_have_made_needful_is_done_in_the_same_round() -> None:
    foreman = Rescuing()
    await a_house(foreman, a_heartbeat(beating=True), seen=(True, False, False)).go_round()

    assert foreman.rounds == ["rescue", "ring_due", "ring_lost"]


@pytest.mark.parametrize("error", [QueueUnavailable(), DatabaseUnavailable(), ValueError("a bug")])
async def test_a_round_that_fails_is_followed_by_the_next(error: Exception) -> None:
    foreman = Failing(error)
    rounds = asyncio.create_task(a_house(foreman, a_heartbeat(beating=False), interval=0).go_round_for_ever())
    await until(lambda: "ring_lost" in foreman.rounds)
    rounds.cancel()

    assert foreman.rounds[:3] == ["ring_due", "ring_due", "ring_lost"]


async def test_after_an_outage_of_postgresql_nobody_is_rescued_until_the_heart_beats_again() -> None:
    foreman, heartbeat = Failing(DatabaseUnavailable()), a_heartbeat(beating=True)
    rounds = asyncio.create_task(a_house(foreman, heartbeat, interval=0).go_round_for_ever())
    await until(lambda: foreman.rounds.count("ring_lost") >= 3)
    rounds.cancel()

    assert foreman.rounds.count("rescue") == 1
    assert not heartbeat.is_beating


async def test_an_outage_of_redis_does_not_keep_anybody_from_being_rescued() -> None:
    foreman, heartbeat = Failing(QueueUnavailable(), QueueUnavailable()), a_heartbeat(beating=True)
    rounds = asyncio.create_task(a_house(foreman, heartbeat, interval=0).go_round_for_ever())
    await until(lambda: "ring_lost" in foreman.rounds)
    rounds.cancel()

    assert foreman.rounds[:6] == ["rescue", "ring_due"] * 3


async def test_between_rounds_it_rests() -> None:
    foreman = FakeForeman()
    rounds = asyncio.create_task(a_house(foreman, a_heartbeat(beating=True), interval=3600).go_round_for_ever())
    await until(lambda: "ring_lost" in foreman.rounds)
    for _ in range(10):
        await asyncio.sleep(0)
    rounds.cancel()

    assert foreman.rounds == ["rescue", "ring_due", "ring_lost"]


async def test_what_is_old_is_pruned_in_every_round_until_there_is_no_more_and_then_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, clock = Old(rounds=3), Clock(monkeypatch)
    housekeeping = a_house(FakeForeman(), a_heartbeat(beating=True), old.prune)
    seen = []
    for seconds in (0, 2, 2, 2, 2, 50, 10, 2):
        clock.now += seconds
        await housekeeping.go_round()
        seen.append(old.rounds)

    assert seen == [1, 2, 3, 3, 3, 3, 4, 4]


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("worker.housekeeping.time", self)

    def monotonic(self) -> float:
        return self.now
