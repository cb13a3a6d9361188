"""How many jobs are fetched ahead: as many as will find a slot in about no time."""

import pytest

from worker.slots import Slots


class Clock:
    """A clock that goes on by what it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def after(slots: int, *intervals: float) -> Slots:
    """Slots of which one came free after each of these times, in seconds."""
    clock = Clock()
    had = Slots(slots, clock=clock)
    for interval in intervals:
        await had.acquire()
        clock.now += interval
        had.release()
    return had


@pytest.mark.parametrize("slots", [1, 10, 100, 1000])
def test_as_long_as_nothing_is_known_none_is_fetched_ahead(slots: int) -> None:
    assert Slots(slots).ahead == 0


async def test_work_that_takes_no_time_has_as_many_ahead_as_there_are_slots() -> None:
    assert (await after(10, *[0.0] * 200)).ahead == 10


@pytest.mark.parametrize(("interval", "ahead"), [(0.0001, 100), (0.0004, 50), (0.002, 10), (0.019, 1), (0.1, 0)])
async def test_the_more_rarely_a_slot_comes_free_the_fewer_are_fetched_ahead(interval: float, ahead: int) -> None:
    assert (await after(100, *[interval] * 500)).ahead == pytest.approx(ahead, abs=1)


async def test_one_slow_job_is_enough_to_fetch_hardly_any_ahead() -> None:
    assert (await after(100, *[0.0001] * 200, 10.0)).ahead == 0


@pytest.mark.parametrize("slots", [1, 10, 100, 1000])
async def test_a_slot_that_does_not_come_free_is_not_waited_for_for_long_and_none_is_fetched_ahead_then(
    slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.slots._LONGEST_WAIT_SECONDS", 0.01)
    quick = await after(slots, *[0.0] * 200)
    before = quick.ahead
    all_taken = [await quick.acquire() for _ in range(slots)]
    in_vain = await quick.acquire()

    assert (before, all(all_taken), in_vain, quick.ahead) == (slots, True, False, 0)
    quick.release()
    assert await quick.acquire()
