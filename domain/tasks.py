"""What goes on in the background of a process: tasks, how they are brought to an end, and the garbage collector."""

import asyncio
import gc
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

_CANCEL_AGAIN_SECONDS: Final = 0.5
#: Python's own thresholds are for small programs: with as many objects as here it would look for cycles thousands of
#: times a minute, and find none.
_GC_THRESHOLDS: Final = (20_000, 20, 50)


def tune_gc() -> None:
    """Have the garbage collector leave alone what is there for good, and look for cycles less often.

    To be called when everything is open.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


@asynccontextmanager
async def in_background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have these run as long as the block lasts."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        await cancel_and_wait(tasks)


async def cancel_and_wait(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel until it is heard: Python 3.11's `wait_for`, in which redis-py sends, can swallow a cancellation."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)


def detach(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Leave tasks to themselves, whatever comes of them: asyncio logs a traceback for a failure nobody asked about."""
    for task in tasks:
        task.add_done_callback(_retrieve_exception)


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
