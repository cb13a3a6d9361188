"""Signal handling beside the server's own: requests that wait for a job must return before a graceful shutdown.

uvicorn ends the lifespan only after the open requests, and a request may wait for 30 seconds. The lifespan therefore
comes too late to release them, and the signal itself is handled here.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SignalHandler = Callable[[int, FrameType | None], Any]


@contextmanager
def on_stop_signal(callback: Callable[[], None]) -> Iterator[None]:
    """Call ``callback`` in the event loop on SIGTERM or SIGINT, before the server's own handler.

    Does nothing where no server handles the signals: in tests, and outside the main thread.
    """
    loop = asyncio.get_running_loop()
    replaced: dict[signal.Signals, Any] = {}
    for number in (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ():
        handler = signal.getsignal(number)
        if callable(handler):
            replaced[number] = handler
            signal.signal(number, _chained(lambda: loop.call_soon_threadsafe(callback), handler))
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _chained(first: Callable[[], object], then: SignalHandler) -> SignalHandler:
    def handle(number: int, frame: FrameType | None) -> None:
        first()
        then(number, frame)

    return handle
