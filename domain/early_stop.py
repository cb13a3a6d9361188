"""An end on SIGTERM for a process that still starts. Imports next to nothing, so that it can come first."""

import os
import signal
from types import FrameType


def end_on_sigterm() -> None:
    """End the process on SIGTERM, until something else handles the signal.

    Call it before anything that takes long, such as an import. The first process of a container would ignore the signal
    otherwise.
    """
    signal.signal(signal.SIGTERM, end_at_once)


def end_at_once(number: int, _: FrameType | None) -> None:
    """Handle a signal by ending the process with status 128 + ``number``.

    Not by an exception: whatever runs just then could swallow it, or wait for a thread that hangs. Nothing is open yet
    that would have to be closed.
    """
    os._exit(128 + number)
