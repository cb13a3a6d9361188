"""Processes of ``cistern up``: restart one that dies, stop it for certain, and count signals instead of raising."""

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, Self

from domain.errors import CisternError

Output = Callable[[str, str], None]

#: An error exit within this time counts as a failed start.
STARTUP_SECONDS = 10.0
MAX_RESTART_DELAY = 10.0
MAX_LINE_LENGTH = 2**20


class ProcessFailed(CisternError):
    """A process ended during start-up."""

    code = "process-failed"


class StopSignals:
    """Counts SIGINT, SIGTERM and SIGHUP instead of raising, so that no start or stop is interrupted half-way."""

    def __init__(self) -> None:
        self.count = 0
        self._callbacks: list[Callable[[], object]] = []
        self._previous: dict[signal.Signals, Any] = {}

    async def wait_for(self, count: int) -> None:
        """Wait until at least ``count`` signals have been received in total."""
        received = asyncio.Event()
        callback = partial(asyncio.get_running_loop().call_soon_threadsafe, received.set)
        self._callbacks.append(callback)
        try:
            while self.count < count:
                await received.wait()
                received.clear()
        finally:
            self._callbacks.remove(callback)

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it stays ignored
            numbers.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._count) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _count(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        for callback in self._callbacks:
            callback()


class Child:
    """A process that is restarted when it dies, until it is stopped. Its lines go to ``output(name, line)``."""

    def __init__(self, name: str, command: Sequence[str], *, environment: Mapping[str, str], output: Output) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._output = output
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._last_line = ""

    @property
    def pid(self) -> int | None:
        """Process id; None while the process does not run."""
        return self._process.pid if self._process is not None else None

    async def keep_alive(self) -> None:
        """Run the process, and restart it until ``stop``.

        Raises:
            ProcessFailed: its first start ended with an error; a restart would not help.
        """
        try:
            started = time.monotonic()
            code = await self._run()
            if code > 0 and time.monotonic() - started < STARTUP_SECONDS and not self._stopping.is_set():
                raise ProcessFailed(f"{self.name} ended during start-up: {self._last_line or f'exit status {code}'}")
            for delay in _restart_delays():
                if self._stopping.is_set():
                    return
                self._output(self.name, f"ended ({_describe(code)}), restarting in {delay:g} s")
                await first_completed(self._stopping.wait(), timeout=delay)
                code = await self._run()
        finally:
            self._ended.set()

    async def stop(self, timeout: float, force: Callable[[], Awaitable[None]]) -> None:  # noqa: ASYNC109
        """Send SIGTERM, and SIGKILL if the process runs after ``timeout`` seconds or when ``force`` returns."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        await first_completed(self._ended.wait(), force(), timeout=timeout)
        self._signal(signal.SIGKILL)

    async def _run(self) -> int:
        """Start the process once, and return its exit status."""
        if self._stopping.is_set():
            return 0
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=MAX_LINE_LENGTH,
            start_new_session=True,  # Ctrl-C reaches only the parent, which stops its children in order
            preexec_fn=_terminate_with_parent if sys.platform == "linux" else None,
        )
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        forwarding = asyncio.create_task(self._forward(process))
        try:
            return await process.wait()
        finally:
            self._process = None
            await asyncio.wait([forwarding], timeout=1)  # a grandchild may keep the pipe open forever
            forwarding.cancel()

    async def _forward(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 (a pipe was requested)
        while not process.stdout.at_eof():
            with suppress(ValueError):  # a line longer than MAX_LINE_LENGTH is dropped
                line = (await process.stdout.readline()).decode(errors="replace").rstrip()
                if line:
                    self._last_line = line
                    self._output(self.name, line)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


async def first_completed(*awaitables: Awaitable[object], timeout: float | None = None) -> None:  # noqa: ASYNC109
    """Wait for the first to complete, at most ``timeout`` seconds, cancel the others, and raise its exception."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


def _restart_delays() -> Iterator[float]:
    delay = 0.5
    while True:
        yield delay
        delay = min(delay * 2, MAX_RESTART_DELAY)


def _describe(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _terminate_with_parent() -> None:
    """Make the kernel send SIGTERM when the parent ends, even by SIGKILL (PR_SET_PDEATHSIG is 1)."""
    if _libc is not None:
        _libc.prctl(1, signal.SIGTERM)
