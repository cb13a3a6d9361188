"""How `cistern up` keeps a process alive and ends it, shown with small stand-ins."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable

import pytest

from api.cli.processes import Child, ProcessFailed, StopSignals

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)


class Lines(list[str]):
    """What a child said, and a way to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self._grown = asyncio.Event()

    def __call__(self, name: str, line: str) -> None:
        self.append(f"{name} {line}")
        self._grown.set()

    async def until(self, condition: Callable[["Lines"], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition(self):
                await self._grown.wait()
                self._grown.clear()


def child(program: str, lines: Lines) -> Child:
    return Child("one", [sys.executable, "-c", program], environment=os.environ, output=lines)


async def never() -> None:
    await asyncio.Event().wait()


async def test_an_error_at_the_first_start_is_final_and_told_with_its_last_line() -> None:
    failing = child("import sys; sys.exit('tape: no such driver')", Lines())

    with pytest.raises(ProcessFailed, match=r"^one ended while starting: tape: no such driver$"):
        await failing.keep_alive()


async def test_a_killed_process_is_started_again() -> None:
    lines = Lines()
    living = child("import time; print('here', flush=True); time.sleep(600)", lines)
    life = asyncio.create_task(living.keep_alive())
    await lines.until(lambda said: said.count("one here") == 1)
    assert living.pid is not None

    os.kill(living.pid, signal.SIGKILL)
    await lines.until(lambda said: said.count("one here") == 2)
    await living.stop(30, never)
    await life

    assert lines == ["one here", "one ended (SIGKILL), starts again in 0.5 s", "one here"]


async def test_a_process_that_does_not_listen_is_killed_when_patience_ends() -> None:
    lines = Lines()
    stubborn = child(STUBBORN, lines)
    life = asyncio.create_task(stubborn.keep_alive())
    await lines.until(lambda said: "one deaf" in said)

    await stubborn.stop(0.1, never)
    await life

    assert stubborn.pid is None


async def test_a_second_signal_hurries() -> None:
    lines = Lines()
    stubborn = child(STUBBORN, lines)
    life = asyncio.create_task(stubborn.keep_alive())
    await lines.until(lambda said: "one deaf" in said)
    began = time.monotonic()

    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        await signals.reach(1)
        os.kill(os.getpid(), signal.SIGINT)
        await stubborn.stop(600, lambda: signals.reach(2))
    await life

    assert time.monotonic() - began < 60


async def test_a_process_that_is_stopped_before_its_start_never_starts() -> None:
    lines = Lines()
    late = child("print('here')", lines)

    await late.stop(0, never)
    await late.keep_alive()

    assert lines == []
