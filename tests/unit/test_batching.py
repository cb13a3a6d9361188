"""What many ask for at the same moment goes out as one; each gets its own answer, and has its own failure."""

import asyncio
from collections.abc import Sequence

import pytest
import structlog

from domain.batching import Batcher
from domain.logs import speaking_of


class Counter:
    """Doubles numbers; waits while its gate is closed, and cannot stand thirteen."""

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


async def test_whoever_is_alone_sets_off_at_once() -> None:
    counter = Counter()
    double = Batcher(counter.double, max_batch=10)

    assert [await double(1), await double(2)] == [2, 4]
    assert counter.calls == [[1], [2]]


async def test_what_gathers_meanwhile_goes_out_as_one_and_each_gets_the_answer_to_its_own() -> None:
    counter = Counter()
    counter.gate.clear()
    double = Batcher(counter.double, max_batch=10)
    first = asyncio.create_task(double(0))
    while not counter.calls:
        await asyncio.sleep(0)
    others = [asyncio.create_task(double(number)) for number in range(1, 6)]
    await asyncio.sleep(0)
    counter.gate.set()

    assert await asyncio.gather(first, *others) == [0, 2, 4, 6, 8, 10]
    assert counter.calls == [[0], [1, 2, 3, 4, 5]]


async def test_no_call_is_larger_than_agreed() -> None:
    counter = Counter()
    double = Batcher(counter.double, max_batch=2)

    assert await asyncio.gather(*map(double, range(5))) == [0, 2, 4, 6, 8]
    assert counter.calls == [[0, 1], [2, 3], [4]]


async def test_the_failure_of_one_is_that_ones_alone() -> None:
    counter = Counter()
    double = Batcher(counter.double, max_batch=10)
    answers = await asyncio.gather(*map(double, (1, 13, 3)), return_exceptions=True)

    assert (answers[0], answers[2]) == (2, 6)
    assert isinstance(answers[1], ValueError)
    assert counter.calls == [[1, 13, 3], [1], [13], [3]]


async def test_a_failure_that_is_common_to_all_is_told_to_each_and_nobody_goes_alone() -> None:
    counter = Counter()
    double = Batcher(counter.double, max_batch=10, fails_all=lambda error: isinstance(error, ValueError))
    answers = await asyncio.gather(*map(double, (1, 13, 3)), return_exceptions=True)

    assert [type(answer) for answer in answers] == [ValueError] * 3
    assert counter.calls == [[1, 13, 3]]


async def test_an_answer_that_is_an_exception_is_raised_to_whoever_asked() -> None:
    async def refuse_odd(numbers: Sequence[int]) -> Sequence[int | Exception]:
        return [ValueError(number) if number % 2 else number for number in numbers]

    answers = await asyncio.gather(*map(Batcher(refuse_odd, max_batch=10), (1, 2)), return_exceptions=True)

    assert isinstance(answers[0], ValueError)
    assert answers[1] == 2


async def test_too_few_answers_are_a_failure_and_leave_nobody_waiting() -> None:
    async def forgetful(_: Sequence[int]) -> Sequence[int]:
        return []

    async with asyncio.timeout(10):
        answers = await asyncio.gather(*map(Batcher(forgetful, max_batch=10), (1, 2)), return_exceptions=True)

    assert [type(answer) for answer in answers] == [ValueError, ValueError]


async def test_whoever_goes_away_keeps_nobody_else_from_an_answer() -> None:
    counter = Counter()
    counter.gate.clear()
    double = Batcher(counter.double, max_batch=10)
    gone, stays = asyncio.create_task(double(1)), asyncio.create_task(double(2))
    while not counter.calls:
        await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    counter.gate.set()

    assert await stays == 4
    assert gone.cancelled()


@pytest.mark.parametrize(("is_revocable", "second"), [(False, [[2, 3]]), (True, [[3]])], ids=["kept", "revoked"])
async def test_what_nobody_waits_for_any_more_is_sent_unless_it_can_be_taken_back(
    is_revocable: bool,  # noqa: FBT001 (pytest gives it by name)
    second: list[list[int]],
) -> None:
    counter = Counter()
    counter.gate.clear()
    double = Batcher(counter.double, max_batch=10, drop_cancelled=is_revocable)
    first = asyncio.create_task(double(1))
    while not counter.calls:
        await asyncio.sleep(0)
    gone, stays = double.submit(2), double.submit(3)
    gone.cancel()
    counter.gate.set()

    assert (await first, await stays) == (2, 6)
    assert counter.calls[1:] == second


async def test_after_a_failure_it_goes_on() -> None:
    double = Batcher(Counter().double, max_batch=10)
    with pytest.raises(ValueError, match="thirteen"):
        await double(13)

    assert await double(1) == 2


async def test_what_is_logged_meanwhile_is_not_about_whoever_was_the_first(caplog: pytest.LogCaptureFixture) -> None:
    async def talk(items: Sequence[int]) -> Sequence[int]:
        structlog.get_logger("talkative").warning("looked")
        return items

    with speaking_of(job_id="mine"):
        await Batcher(talk, max_batch=10)(1)
        structlog.get_logger("talkative").warning("asked")

    assert ["job_id" in record.msg for record in caplog.records] == [False, True]
