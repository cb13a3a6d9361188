"""Group commit: concurrent calls are sent as one batch, and each caller gets the result of its own item.

A single item is sent at once. Items that arrive while a batch is in flight form the next batch, so the cost per item
falls as the load grows. If ``second_batch_at`` items wait, a second batch is sent beside the first. A batch that hangs
holds up the others for `_SLOW_SECONDS` only; then it no longer counts as in flight.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar, cast

from domain import tracing
from domain.logs import clear_log_context

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Maximum number of items sent singly at the same time: they share the connection pool with everything else.
_MAX_SINGLE_SENDS: Final = 4

#: Maximum number of batches in flight, not counting those that hang.
_MAX_IN_FLIGHT: Final = 2

#: Time in seconds after which a batch counts as hanging.
_SLOW_SECONDS: Final = 2.0

_Submitted = tuple[Item, "asyncio.Future[Result]"]
Send = Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]]


class Batcher(Generic[Item, Result]):
    """One small operation of concurrent tasks, such as one kind of statement, run in batches.

    ``send`` takes items and returns one result per item, in their order; a result that is an exception is raised to
    that item's caller. If ``send`` itself fails for a batch, each of its items is sent again on its own, so that a
    failure is limited to its item; later batches do not wait for those. ``send`` must therefore be safe to repeat
    after a failure.
    """

    def __init__(
        self,
        send: "Send[Item, Result]",
        *,
        max_batch: int,
        second_batch_at: float = math.inf,
        fails_all: Callable[[Exception], bool] = lambda _: False,
        drop_cancelled: bool = False,
    ) -> None:
        """Prepare a batcher; nothing runs before the first item.

        Args:
            send: Sends one batch.
            max_batch: Maximum number of items in one batch.
            second_batch_at: Number of waiting items from which a second batch is sent beside the one in flight.
            fails_all: Whether a failure concerns the whole batch; it is then raised to every caller without sending
                the items singly.
            drop_cancelled: Whether an item whose future was cancelled before its batch was sent is left out.
        """
        self._send = send
        self._max_batch = max_batch
        self._second_batch_at = second_batch_at
        self._fails_all = fails_all
        self._drop_cancelled = drop_cancelled
        self._waiting: list[_Submitted[Item, Result]] = []
        #: Tasks that send a batch, without those that hang.
        self._sending: set[asyncio.Task[None]] = set()
        #: Those that hang.
        self._slow: set[asyncio.Task[None]] = set()
        self._single_sends: set[asyncio.Task[None]] = set()
        self._single_sends_limit = asyncio.Semaphore(_MAX_SINGLE_SENDS)

    def submit(self, item: Item) -> "asyncio.Future[Result]":
        """Queue an item and return the future of its result.

        Cancelling the future withdraws an item that was not sent yet only if the batcher was made with
        ``drop_cancelled``.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._start_if_due()
        return future

    async def __call__(self, item: Item) -> Result:
        """Send an item and return its result."""
        return await self.submit(item)

    def _start_if_due(self) -> None:
        """Send the next batch, unless its items had better wait for the one in flight."""
        in_flight, waiting = len(self._sending), len(self._waiting)
        if waiting and (in_flight == 0 or (in_flight < _MAX_IN_FLIGHT and waiting >= self._second_batch_at)):
            self._sending.add(asyncio.create_task(self._send_next()))

    async def _send_next(self) -> None:
        clear_log_context()  # this task inherits the log context of the caller that started it, but serves all of them
        tracing.leave()
        loop, this = asyncio.get_running_loop(), cast("asyncio.Task[None]", asyncio.current_task())
        timer = loop.call_later(_SLOW_SECONDS, self._leave_behind, this)
        try:
            if batch := self._next_batch():
                await self._deliver(batch)
        finally:
            timer.cancel()
            self._sending.discard(this)
        self._start_if_due()

    def _leave_behind(self, sending: "asyncio.Task[None]") -> None:
        """Let a batch in flight take its time, and send those behind it."""
        self._sending.discard(sending)
        self._slow.add(sending)
        sending.add_done_callback(self._slow.discard)
        self._start_if_due()

    def _next_batch(self) -> "Sequence[_Submitted[Item, Result]]":
        if self._drop_cancelled:
            self._waiting = [submitted for submitted in self._waiting if not submitted[1].cancelled()]
        batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
        return batch

    async def _deliver(self, batch: "Sequence[_Submitted[Item, Result]]") -> None:
        try:
            results = await self._send([item for item, _ in batch])
            resolved = list(zip(batch, results, strict=True))
        except Exception as error:  # noqa: BLE001 (it is raised to the callers)
            if len(batch) > 1 and not self._fails_all(error):
                self._send_singly(batch)
                return
            for _, future in batch:
                _resolve(future, error)
        else:
            for (_, future), result in resolved:
                _resolve(future, result)

    def _send_singly(self, batch: "Sequence[_Submitted[Item, Result]]") -> None:
        for submitted in batch:
            task = asyncio.create_task(self._deliver_one(submitted))
            self._single_sends.add(task)
            task.add_done_callback(self._single_sends.discard)

    async def _deliver_one(self, submitted: "_Submitted[Item, Result]") -> None:
        async with self._single_sends_limit:
            await self._deliver([submitted])


def _resolve(future: "asyncio.Future[Result]", result: Result | Exception) -> None:
    if future.done():  # the caller has cancelled it
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
