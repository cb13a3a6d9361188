"""How many jobs are fetched ahead: as many as will find a slot about at once."""

import pytest

from worker.slots import Slots


async def after(slots: int, *seconds: float) -> Slots:
    """Slots that jobs have gone through, each ``seconds`` long."""
    had = Slots(slots)
    for one in seconds:
        await had.take()
        had.give_back(after=one)
    return had


def test_as_long_as_nothing_is_known_next_to_none_is_fetched_ahead() -> None:
    assert (Slots(10).ahead, Slots(100).ahead) == (0, 2)


async def test_work_that_takes_no_time_has_as_many_ahead_as_there_are_slots() -> None:
    assert (await after(10, *[0.0] * 100)).ahead == 10


@pytest.mark.parametrize(("seconds", "ahead"), [(0.01, 100), (0.04, 50), (0.2, 10), (5.0, 0)])
async def test_the_longer_jobs_are_at_work_the_fewer_are_fetched_ahead(seconds: float, ahead: int) -> None:
    assert (await after(100, *[seconds] * 200)).ahead == pytest.approx(ahead, abs=1)


async def test_one_slow_job_among_many_quick_ones_is_enough_to_fetch_hardly_any_ahead() -> None:
    assert (await after(10, *[0.001] * 200, 10.0)).ahead == 0


async def test_a_slot_that_does_not_come_free_is_not_waited_for_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.slots._PATIENCE_SECONDS", 0.01)
    slots = Slots(1)
    first, second = await slots.take(), await slots.take()
    slots.give_back(after=1)

    assert (first, second, await slots.take()) == (True, False, True)
