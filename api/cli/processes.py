"""What `cistern up` needs of processes: keep one alive, end it for certain, hear Ctrl-C without breaking anything."""

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

STARTING_SECONDS = 10.0
MAX_PAUSE = 10.0
MAX_LINE_LENGTH = 2**20


class ProcessFailed(CisternError):
    """A process ended while it was starting."""

    code = "process-failed"


class StopSignals:
    """Counts SIGINT, SIGTERM and SIGHUP instead of raising: what is being started or stopped is never torn in two."""

    def __init__(self) -> None:
        self.count = 0
        self._wakes: list[Callable[[], object]] = []
        self._previous: dict[signal.Signals, Any] = {}

    async def reach(self, count: int) -> None:
        """Wait until ``count`` signals have come in all."""
        woken = asyncio.Event()
        wake = partial(asyncio.get_running_loop().call_soon_threadsafe, woken.set)
        self._wakes.append(wake)
        try:
            while self.count < count:
                await woken.wait()
                woken.clear()
        finally:
            self._wakes.remove(wake)

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
            numbers.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        for wake in self._wakes:
            wake()


class Child:
    """A process that is started again when it dies, until it is stopped. Its lines go to ``output(name, line)``."""

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
        """The process's id, while there is one."""
        return self._process.pid if self._process is not None else None

    async def keep_alive(self) -> None:
        """Run the process again and again until ``stop``.

        Raises:
            ProcessFailed: it ended with an error right at its first start: doing it again would not help.
        """
        try:
            began = time.monotonic()
            code = await self._run()
            if code > 0 and time.monotonic() - began < STARTING_SECONDS and not self._stopping.is_set():
                raise ProcessFailed(f"{self.name} ended while starting: {self._last_line or f'exit code {code}'}")
            for pause in _pauses():
                if self._stopping.is_set():
                    return
                self._output(self.name, f"ended ({_describe(code)}), starts again in {pause:g} s")
                await either(self._stopping.wait(), timeout=pause)
                code = await self._run()
        finally:
            self._ended.set()

    async def stop(self, patience: float, hurry: Callable[[], Awaitable[None]]) -> None:
        """Ask it to end; after ``patience`` seconds, or in a ``hurry``, make it end."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        await either(self._ended.wait(), hurry(), timeout=patience)
        self._signal(signal.SIGKILL)

    async def _run(self) -> int:
        """One life of the process: from its start to its exit code."""
        if self._stopping.is_set():
            return 0
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=MAX_LINE_LENGTH,
            start_new_session=True,  # a Ctrl-C reaches only `up`, which ends its children in order
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        forwarding = asyncio.create_task(self._forward(process))
        try:
            return await process.wait()
        finally:
            self._process = None
            await asyncio.wait([forwarding], timeout=1)  # a grandchild may hold the pipe open for ever
            forwarding.cancel()

    async def _forward(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 (it was asked for)
        while not process.stdout.at_eof():
            with suppress(ValueError):  # a line longer than LONGEST_LINE is left out
                line = (await process.stdout.readline()).decode(errors="replace").rstrip()
                if line:
                    self._last_line = line
                    self._output(self.name, line)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


async def either(*awaitables: Awaitable[object], timeout: float | None = None) -> None:  # noqa: ASYNC109
    """Wait for the first, at most ``timeout`` seconds, and cancel the others. Raises what the first raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


def _pauses() -> Iterator[float]:
    pause = 0.5
    while True:
        yield pause
        pause = min(pause * 2, MAX_PAUSE)


def _describe(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM when `up` is gone, be it by kill -9 (PR_SET_PDEATHSIG is 1)."""
    if _libc is not None:
        _libc.prctl(1, signal.SIGTERM)
