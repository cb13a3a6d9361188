"""What a process does besides its work: background tasks, and tuning the garbage collector."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any, Final, TypeVar

T = TypeVar("T")

_CANCEL_AGAIN_SECONDS: Final = 0.5
#: Python's default thresholds suit small programs; with the number of objects here, the collector would run thousands
#: of times a minute and find nothing.
_GC_THRESHOLDS: Final = (20_000, 20, 50)


def tune_gc() -> None:
    """Exclude long-lived objects from garbage collection and run it less often.

    Call this once all services are open.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


async def in_daemon_thread(step: Callable[[], T]) -> T:
    """Run a step that may hang for ever in a thread that does not keep the process from ending."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # from now on it is not cancelled, so that the thread can end it

    def run() -> None:
        try:
            outcome.set_result(step())
        except BaseException as error:  # noqa: BLE001 (for the caller)
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(outcome)


@asynccontextmanager
async def in_background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these coroutines as tasks while the block runs, then cancel them."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        await cancel_and_wait(tasks)


async def cancel_and_wait(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks, repeatedly until they end.

    One cancellation is not enough: Python 3.11's `asyncio.wait_for`, in which redis-py sends, can swallow it.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)


def detach(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Let tasks run on their own. Their exceptions are retrieved, as asyncio logs a traceback for each that is not."""
    for task in tasks:
        task.add_done_callback(_retrieve_exception)


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
