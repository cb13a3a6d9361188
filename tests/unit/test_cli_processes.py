"""Process supervision of `cistern up`: restart, stop, signals; with small programs as children."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable

import pytest

from api.cli.processes import Child, ProcessFailed, StopSignals

IGNORES_SIGTERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)


class Lines(list[str]):
    """The output of a child, and a way to wait for a line."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Event()

    def __call__(self, name: str, line: str) -> None:
        self.append(f"{name} {line}")
        self._changed.set()

    async def until(self, condition: Callable[["Lines"], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition(self):
                await self._changed.wait()
                self._changed.clear()


def child(program: str, lines: Lines) -> Child:
    return Child("one", [sys.executable, "-c", program], environment=os.environ, output=lines)


async def never() -> None:
    await asyncio.Event().wait()


async def test_failed_first_start_is_final_and_reports_the_last_line() -> None:
    process = child("import sys; sys.exit('tape: no such driver')", Lines())

    with pytest.raises(ProcessFailed, match=r"^one ended during start-up: tape: no such driver$"):
        await process.keep_alive()


async def test_killed_process_is_restarted() -> None:
    lines = Lines()
    process = child("import time; print('here', flush=True); time.sleep(600)", lines)
    keeper = asyncio.create_task(process.keep_alive())
    await lines.until(lambda output: output.count("one here") == 1)
    assert process.pid is not None

    os.kill(process.pid, signal.SIGKILL)
    await lines.until(lambda output: output.count("one here") == 2)
    await process.stop(30, never)
    await keeper

    assert lines == ["one here", "one ended (SIGKILL), restarting in 0.5 s", "one here"]


async def test_process_that_ignores_sigterm_is_killed_after_the_timeout() -> None:
    lines = Lines()
    process = child(IGNORES_SIGTERM, lines)
    keeper = asyncio.create_task(process.keep_alive())
    await lines.until(lambda output: "one ready" in output)

    await process.stop(0.1, never)
    await keeper

    assert process.pid is None


async def test_second_signal_forces_the_stop() -> None:
    lines = Lines()
    process = child(IGNORES_SIGTERM, lines)
    keeper = asyncio.create_task(process.keep_alive())
    await lines.until(lambda output: "one ready" in output)
    started = time.monotonic()

    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        await signals.wait_for(1)
        os.kill(os.getpid(), signal.SIGINT)
        await process.stop(600, lambda: signals.wait_for(2))
    await keeper

    assert time.monotonic() - started < 60


async def test_process_stopped_before_its_start_never_starts() -> None:
    lines = Lines()
    process = child("print('here')", lines)

    await process.stop(0, never)
    await process.keep_alive()

    assert lines == []
