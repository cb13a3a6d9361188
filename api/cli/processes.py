"""Processes of ``cistern up``: started again when they end, stopped for certain, and never stopped half-way."""

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import IO

from domain.embedded.process import Process, stop_all
from domain.errors import CisternError

Output = Callable[[str, str], None]

#: An error exit within this time counts as a failed start.
STARTUP_SECONDS = 10.0
MIN_RESTART_DELAY, MAX_RESTART_DELAY = 0.5, 10.0
MAX_LINE_LENGTH = 2**20


class ProcessFailed(CisternError):
    """A process ended during start-up."""

    code = "process-failed"


class Child(Process):
    """A process that is started again when it has ended. Its lines go to ``output(name, line)``."""

    def __init__(self, name: str, command: Sequence[str], *, environment: Mapping[str, str], output: Output) -> None:
        super().__init__(name)
        self._command = command
        self._environment = environment
        self._output = output
        self._last_line = ""
        self._started_at = 0.0
        self._next_start_at = 0.0
        self._restart_delay = MIN_RESTART_DELAY

    def keep_alive(self) -> None:
        """Start the process if it does not run and its restart is due; to be called again and again.

        Raises:
            ProcessFailed: its first start ended with an error; a restart would not help.
        """
        if self._child is None:
            if time.monotonic() >= self._next_start_at:
                self._start()
        elif self._child.poll() is not None:
            code = self.wait()
            reason = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            is_first = not self._next_start_at
            if is_first and code > 0 and time.monotonic() - self._started_at < STARTUP_SECONDS:
                raise ProcessFailed(f"{self.name} ended during start-up: {self._last_line or reason}")
            self._output(self.name, f"ended ({reason}), restarting in {self._restart_delay:g} s")
            self._next_start_at = time.monotonic() + self._restart_delay
            self._restart_delay = min(self._restart_delay * 2, MAX_RESTART_DELAY)

    def wait(self) -> int:
        """Wait until the process has ended and its last lines are written, and return its exit status."""
        if self._child is None:
            return 0
        code = self._child.wait()
        self._reader.join(timeout=1)  # a grandchild may keep the pipe open forever
        self._child = None
        return code

    def _start(self) -> None:
        self._started_at = time.monotonic()
        child = self._launch(
            self._command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_terminate_with_parent if sys.platform == "linux" else None,
        )
        self._reader = Thread(target=self._forward, args=[child.stdout], daemon=True)
        self._reader.start()

    def _forward(self, pipe: IO[bytes]) -> None:
        with pipe:
            while piece := pipe.readline(MAX_LINE_LENGTH):
                line = piece.decode(errors="replace").rstrip()
                if line:
                    self._last_line = line
                    self._output(self.name, line)


def stop_children(children: Sequence[Child], seconds: float, signals: Sequence[int]) -> None:
    """Send SIGTERM, and SIGKILL to those that run after ``seconds`` or a second signal; wait for their last lines."""
    stop_all(children, (signal.SIGTERM, seconds), (signal.SIGKILL, 0), hurry=lambda: len(signals) > 1)
    for child in children:
        child.wait()


@contextmanager
def collected_stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP instead of raising, so that no start or stop is interrupted half-way."""
    received: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it stays ignored
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _terminate_with_parent() -> None:
    """Make the kernel send SIGTERM when the parent ends, even by SIGKILL (PR_SET_PDEATHSIG is 1)."""
    if _libc is not None:
        _libc.prctl(1, signal.SIGTERM)
