"""As many jobs are fetched ahead as will find a slot within a tenth of a second, and many at once."""

import pytest

from worker.slots import Load, Slots


class Clock:
    """A clock that only the test advances."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def released_at_intervals(number: int, *intervals: float) -> Slots:
    """Return slots of which one was released after each of these intervals, in seconds."""
    clock = Clock()
    slots = Slots(number, clock=clock)
    for interval in intervals:
        await slots.acquire()
        clock.now += interval
        slots.release()
    return slots


@pytest.mark.parametrize("slots", [1, 10, 100, 1000])
def test_nothing_is_fetched_ahead_at_first(slots: int) -> None:
    assert Slots(slots).ahead == 0


async def test_number_fetched_ahead_is_at_most_five_per_slot() -> None:
    assert (await released_at_intervals(10, *[0.0] * 200)).ahead == 50


@pytest.mark.parametrize(("interval", "ahead"), [(0.0001, 500), (0.0005, 200), (0.002, 50), (0.01, 10), (0.3, 0)])
async def test_longer_intervals_between_releases_mean_fewer_jobs_ahead(interval: float, ahead: int) -> None:
    assert (await released_at_intervals(100, *[interval] * 500)).ahead == pytest.approx(ahead, rel=0.03, abs=1)


async def test_one_slow_job_reduces_the_number_fetched_ahead_to_one() -> None:
    assert (await released_at_intervals(100, *[0.0001] * 200, 10.0)).ahead == 1


@pytest.mark.parametrize("slots", [1, 10, 100, 1000])
async def test_waiting_for_a_slot_times_out_and_then_nothing_is_fetched_ahead(
    slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.slots._MAX_WAIT_SECONDS", 0.01)
    fast = await released_at_intervals(slots, *[0.0] * 200)
    before = fast.ahead
    acquired = [await fast.acquire() for _ in range(slots)]
    acquired_one_more = await fast.acquire()

    assert (before, all(acquired), acquired_one_more, fast.ahead) == (5 * slots, True, False, 0)
    fast.release()
    assert await fast.acquire()


async def test_jobs_are_fetched_one_by_one_while_slots_are_released_slowly() -> None:
    load = Load(Slots(10))
    load.add(10)
    full = load.capacity
    load.end_work()

    assert (full, load.capacity, load.freed.is_set()) == (0, 1, True)


async def test_nothing_is_fetched_while_half_of_those_to_be_fetched_ahead_are_there() -> None:
    load = Load(await released_at_intervals(10, *[0.0] * 200))
    load.add(60)
    capacities = []
    for _ in range(27):
        load.end_work()
        load.settle()
        capacities.append(load.capacity)

    assert capacities == [0] * 25 + [26, 27]
    assert load.freed.is_set()


async def test_nothing_is_fetched_while_too_many_jobs_are_to_be_settled() -> None:
    load = Load(Slots(10))
    for _ in range(2):
        load.add(10)
        load.end_work(10)
    before = load.capacity
    load.settle()

    assert (before, load.capacity) == (0, 1)
