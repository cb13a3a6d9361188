"""Concurrent calls are sent as one batch; each gets its own result, and its own failure."""

import asyncio
from collections.abc import Sequence

import pytest
import structlog

from domain.batching import Batcher
from domain.logs import bind_lazily


class Counter:
    """Doubles numbers; waits while its gate is closed, and fails on 13."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def double(self, numbers: Sequence[int]) -> Sequence[int | Exception]:
        self.calls.append(list(numbers))
        await self.gate.wait()
        if 13 in numbers:
            raise ValueError("thirteen")
        return [number * 2 for number in numbers]


async def test_single_item_is_sent_at_once() -> None:
    counter = Counter()
    double = Batcher(counter.double, max_batch=10)

    assert [await double(1), await double(2)] == [2, 4]
    assert counter.calls == [[1], [2]]


async def test_items_queued_during_a_send_form_one_batch_and_get_their_own_results() -> None:
    counter = Counter()
    counter.gate.clear()
    double = Batcher(counter.double, max_batch=10)
    first = asyncio.create_task(double(0))
    while not counter.calls:
        await asyncio.sleep(0)
    later = [asyncio.create_task(double(number)) for number in range(1, 6)]
    await asyncio.sleep(0)
    counter.gate.set()

    assert await asyncio.gather(first, *later) == [0, 2, 4, 6, 8, 10]
    assert counter.calls == [[0], [1, 2, 3, 4, 5]]


async def test_batch_is_never_larger_than_max_batch() -> None:
    counter = Counter()
    double = Batcher(counter.double, max_batch=2)

    assert await asyncio.gather(*map(double, range(5))) == [0, 2, 4, 6, 8]
    assert counter.calls == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(("waiting", "in_flight"), [(3, 1), (4, 2), (12, 2)])
async def test_second_batch_is_in_flight_only_when_enough_items_wait(waiting: int, in_flight: int) -> None:
    counter = Counter()
    counter.gate.clear()
    double = Batcher(counter.double, max_batch=5, second_batch_at=4)
    first = double.submit(0)
    while not counter.calls:
        await asyncio.sleep(0)
    later = [double.submit(number) for number in range(1, waiting + 1)]
    for _ in range(10):
        await asyncio.sleep(0)
    calls = len(counter.calls)
    counter.gate.set()

    assert await asyncio.gather(first, *later) == [2 * number for number in range(waiting + 1)]
    assert calls == in_flight
    assert [number for call in counter.calls for number in call] == list(range(waiting + 1))


async def test_batch_that_hangs_holds_up_no_later_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domain.batching._SLOW_SECONDS", 0.05)
    counter = Counter()
    counter.gate.clear()
    double = Batcher(counter.double, max_batch=10)
    hanging = asyncio.create_task(double(0))
    while not counter.calls:
        await asyncio.sleep(0)
    counter.gate = asyncio.Event()  # the next batch waits for another gate than the one that hangs
    counter.gate.set()

    assert list(await asyncio.gather(double(1), double(2))) == [2, 4]
    assert await double(3) == 6
    assert counter.calls == [[0], [1, 2], [3]]
    assert not hanging.done()
    hanging.cancel()


async def test_failed_batch_is_retried_singly_and_only_the_bad_item_fails() -> None:
    counter = Counter()
    double = Batcher(counter.double, max_batch=10)
    results = await asyncio.gather(*map(double, (1, 13, 3)), return_exceptions=True)

    assert (results[0], results[2]) == (2, 6)
    assert isinstance(results[1], ValueError)
    assert counter.calls == [[1, 13, 3], [1], [13], [3]]


async def test_failure_of_the_whole_batch_is_raised_to_all_without_single_sends() -> None:
    counter = Counter()
    double = Batcher(counter.double, max_batch=10, fails_all=lambda error: isinstance(error, ValueError))
    results = await asyncio.gather(*map(double, (1, 13, 3)), return_exceptions=True)

    assert [type(result) for result in results] == [ValueError] * 3
    assert counter.calls == [[1, 13, 3]]


async def test_exception_as_a_result_is_raised_to_its_caller() -> None:
    async def refuse_odd(numbers: Sequence[int]) -> Sequence[int | Exception]:
        return [ValueError(number) if number % 2 else number for number in numbers]

    results = await asyncio.gather(*map(Batcher(refuse_odd, max_batch=10), (1, 2)), return_exceptions=True)

    assert isinstance(results[0], ValueError)
    assert results[1] == 2


async def test_too_few_results_fail_every_item() -> None:
    async def return_nothing(_: Sequence[int]) -> Sequence[int]:
        return []

    async with asyncio.timeout(10):
        results = await asyncio.gather(*map(Batcher(return_nothing, max_batch=10), (1, 2)), return_exceptions=True)

    assert [type(result) for result in results] == [ValueError, ValueError]


async def test_cancelled_caller_does_not_affect_the_others() -> None:
    counter = Counter()
    counter.gate.clear()
    double = Batcher(counter.double, max_batch=10)
    cancelled, other = asyncio.create_task(double(1)), asyncio.create_task(double(2))
    while not counter.calls:
        await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    counter.gate.set()

    assert await other == 4
    assert cancelled.cancelled()


@pytest.mark.parametrize(("drop_cancelled", "second"), [(False, [[2, 3]]), (True, [[3]])], ids=["sent", "dropped"])
async def test_cancelled_item_is_sent_unless_drop_cancelled_is_set(
    drop_cancelled: bool,  # noqa: FBT001 (pytest passes it by name)
    second: list[list[int]],
) -> None:
    counter = Counter()
    counter.gate.clear()
    double = Batcher(counter.double, max_batch=10, drop_cancelled=drop_cancelled)
    first = asyncio.create_task(double(1))
    while not counter.calls:
        await asyncio.sleep(0)
    cancelled, other = double.submit(2), double.submit(3)
    cancelled.cancel()
    counter.gate.set()

    assert (await first, await other) == (2, 6)
    assert counter.calls[1:] == second


async def test_batcher_works_after_a_failure() -> None:
    double = Batcher(Counter().double, max_batch=10)
    with pytest.raises(ValueError, match="thirteen"):
        await double(13)

    assert await double(1) == 2


async def test_log_lines_of_a_batch_lack_the_context_of_its_first_caller(caplog: pytest.LogCaptureFixture) -> None:
    async def log_and_return(items: Sequence[int]) -> Sequence[int]:
        structlog.get_logger("verbose").warning("sent")
        return items

    bind_lazily(lambda: {"job_id": "mine"})
    with structlog.contextvars.bound_contextvars(request_id="mine"):
        await Batcher(log_and_return, max_batch=10)(1)
        structlog.get_logger("verbose").warning("received")

    lines = [record.msg for record in caplog.records]
    assert [[name in line for name in ("job_id", "request_id")] for line in lines] == [[False] * 2, [True] * 2]
