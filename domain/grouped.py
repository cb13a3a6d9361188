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
_ALONE: Final = 4

_Asked = tuple[Item, "asyncio.Future[Answer]"]
Send = Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]]


class Grouped(Generic[Item, Answer]):
    """One small thing that concurrent tasks do, such as one kind of statement.

    ``send`` takes items and returns as many answers, in their order; an answer that is an exception is raised to the
    one who asked. When ``send`` itself fails over many, each goes out alone, and those that come after wait for none of
    them: a failure is that of its item only. So ``send`` must be safe to repeat when it has failed.
    """

    def __init__(
        self,
        send: "Send[Item, Answer]",
        *,
        most: int,
        is_common: Callable[[Exception], bool] = lambda _: False,
        is_revocable: bool = False,
    ) -> None:
        """``most``: so many items in one call. A failure that ``is_common`` to all of them is told to each at once.

        ``is_revocable``: what nobody waits for any more is not sent.
        """
        self._send = send
        self._most = most
        self._is_common = is_common
        self._is_revocable = is_revocable
        self._waiting: list[_Asked[Item, Answer]] = []
        self._sending: asyncio.Task[None] | None = None
        self._alone: set[asyncio.Task[None]] = set()
        self._few = asyncio.Semaphore(_ALONE)

    def hand_in(self, item: Item) -> "asyncio.Future[Answer]":
        """Have an item sent, and go on; the future has the answer. Cancelling it takes back only what is revocable."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())
        return answer

    async def __call__(self, item: Item) -> Answer:
        """Have an item sent, and wait for its answer."""
        return await self.hand_in(item)

    async def _send_all(self) -> None:
        speak_of_nothing()  # what is logged here is not about whoever happened to be the first
        try:
            while gathered := self._gather():
                await self._deliver(gathered)
        finally:
            self._sending = None

    def _gather(self) -> "Sequence[_Asked[Item, Answer]]":
        if self._is_revocable:
            self._waiting = [asked for asked in self._waiting if not asked[1].cancelled()]
        gathered, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        return gathered

    async def _deliver(self, gathered: "Sequence[_Asked[Item, Answer]]") -> None:
        try:
            answers = await self._send([item for item, _ in gathered])
            told = list(zip(gathered, answers, strict=True))
        except Exception as error:  # noqa: BLE001 (it is raised to whoever asked)
            if len(gathered) > 1 and not self._is_common(error):
                self._part(gathered)
                return
            for _, future in gathered:
                _tell(future, error)
        else:
            for (_, future), answer in told:
                _tell(future, answer)

    def _part(self, gathered: "Sequence[_Asked[Item, Answer]]") -> None:
        for asked in gathered:
            task = asyncio.create_task(self._deliver_alone(asked))
            self._alone.add(task)
            task.add_done_callback(self._alone.discard)

    async def _deliver_alone(self, asked: "_Asked[Item, Answer]") -> None:
        async with self._few:
            await self._deliver([asked])


def _tell(future: "asyncio.Future[Answer]", answer: Answer | Exception) -> None:
    if future.done():  # whoever asked has gone
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
