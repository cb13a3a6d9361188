"""Group commit: what many ask for at the same moment goes out as one, and each gets the answer to its own question.

Whoever is alone sets off at once. Whatever gathers while one call is on its way goes out with the next one, so the
busier it gets, the less each one costs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from domain.logs import speak_of_nothing

Item = TypeVar("Item")
Answer = TypeVar("Answer")

#: Of those that go alone so many are on their way at once: they share a pool of connections with everybody.
_MAX_SINGLE_SENDS: Final = 4

_Submitted = tuple[Item, "asyncio.Future[Answer]"]
Send = Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]]


class Batcher(Generic[Item, Answer]):
    """One small thing that concurrent tasks do, such as one kind of statement.

    ``send`` takes items and returns as many answers, in their order; an answer that is an exception is raised to the
    one who asked. When ``send`` itself fails over many, each goes out alone, and those that come after wait for none of
    them: a failure is that of its item only. So ``send`` must be safe to repeat when it has failed.
    """

    def __init__(
        self,
        send: "Send[Item, Answer]",
        *,
        max_batch: int,
        fails_all: Callable[[Exception], bool] = lambda _: False,
        drop_cancelled: bool = False,
    ) -> None:
        """``most``: so many items in one call. A failure that ``is_common`` to all of them is told to each at once.

        ``is_revocable``: what nobody waits for any more is not sent.
        """
        self._send = send
        self._max_batch = max_batch
        self._fails_all = fails_all
        self._drop_cancelled = drop_cancelled
        self._waiting: list[_Submitted[Item, Answer]] = []
        self._sending: asyncio.Task[None] | None = None
        self._single_sends: set[asyncio.Task[None]] = set()
        self._single_slots = asyncio.Semaphore(_MAX_SINGLE_SENDS)

    def submit(self, item: Item) -> "asyncio.Future[Answer]":
        """Have an item sent, and go on; the future has the answer. Cancelling it takes back only what is revocable."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())
        return answer

    async def __call__(self, item: Item) -> Answer:
        """Have an item sent, and wait for its answer."""
        return await self.submit(item)

    async def _send_all(self) -> None:
        speak_of_nothing()  # what is logged here is not about whoever happened to be the first
        try:
            while batch := self._next_batch():
                await self._deliver(batch)
        finally:
            self._sending = None

    def _next_batch(self) -> "Sequence[_Submitted[Item, Answer]]":
        if self._drop_cancelled:
            self._waiting = [submitted for submitted in self._waiting if not submitted[1].cancelled()]
        batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
        return batch

    async def _deliver(self, batch: "Sequence[_Submitted[Item, Answer]]") -> None:
        try:
            answers = await self._send([item for item, _ in batch])
            told = list(zip(batch, answers, strict=True))
        except Exception as error:  # noqa: BLE001 (it is raised to whoever asked)
            if len(batch) > 1 and not self._fails_all(error):
                self._send_singly(batch)
                return
            for _, future in batch:
                _resolve(future, error)
        else:
            for (_, future), answer in told:
                _resolve(future, answer)

    def _send_singly(self, batch: "Sequence[_Submitted[Item, Answer]]") -> None:
        for submitted in batch:
            task = asyncio.create_task(self._deliver_one(submitted))
            self._single_sends.add(task)
            task.add_done_callback(self._single_sends.discard)

    async def _deliver_one(self, submitted: "_Submitted[Item, Answer]") -> None:
        async with self._single_slots:
            await self._deliver([submitted])


def _resolve(future: "asyncio.Future[Answer]", answer: Answer | Exception) -> None:
    if future.done():  # whoever asked has gone
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
