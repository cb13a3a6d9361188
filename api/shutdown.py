"""What the server does not tell the application in time: that it is to stop, while clients still wait for jobs.

uvicorn waits for open requests before it ends the lifespan, and a request may wait for half a minute. So we listen to
its signals beside it.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def on_stop(react: Callable[[], None]) -> Iterator[None]:
    """Call ``react`` in the event loop at SIGTERM or SIGINT, before the server's own handler.

    Where no server handles them (tests, a thread), nothing is changed.
    """
    loop = asyncio.get_running_loop()
    replaced: dict[signal.Signals, Any] = {}
    for number in (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ():
        handler = signal.getsignal(number)
        if callable(handler):
            replaced[number] = handler
            signal.signal(number, _both(lambda: loop.call_soon_threadsafe(react), handler))
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _both(first: Callable[[], object], then: Handler) -> Handler:
    def handle(number: int, frame: FrameType | None) -> None:
        first()
        then(number, frame)

    return handle
