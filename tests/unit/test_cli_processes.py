"""Process supervision of `cistern up`: restart, stop, signals; with small programs as children."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping

import pytest

from api.cli.processes import Child, ProcessFailed, collected_stop_signals, stop_children
from api.cli.stack import Stack, _run_processes
from domain.settings import load_settings

IGNORES_SIGTERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)


class Lines(list[str]):
    """The output of a child."""

    def __call__(self, name: str, line: str) -> None:
        self.append(f"{name} {line}")


def child(program: str, lines: Lines) -> Child:
    return Child("one", [sys.executable, "-c", program], environment=os.environ, output=lines)


def keep_alive_until(process: Child, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        process.keep_alive()
        time.sleep(0.01)


def test_failed_first_start_is_final_and_reports_the_last_line() -> None:
    process = child("import sys; sys.exit('tape: no such driver')", Lines())

    with pytest.raises(ProcessFailed, match=r"^one ended during start-up: tape: no such driver$"):
        keep_alive_until(process, lambda: False)


def test_killed_process_is_restarted() -> None:
    lines = Lines()
    process = child("import os, time; print('here', os.getpid(), flush=True); time.sleep(600)", lines)
    keep_alive_until(process, lambda: len(lines) == 1)
    first = int(lines[0].split()[-1])

    os.kill(first, signal.SIGKILL)
    keep_alive_until(process, lambda: len(lines) == 3)
    stop_children([process], 30, [])

    second = int(lines[2].split()[-1])
    assert lines == [f"one here {first}", "one ended (SIGKILL), restarting in 0.5 s", f"one here {second}"]
    assert second != first


def test_process_that_ignores_sigterm_is_killed_after_the_timeout() -> None:
    lines = Lines()
    process = child(IGNORES_SIGTERM, lines)
    keep_alive_until(process, lambda: "one ready" in lines)

    stop_children([process], 0.1, [])

    assert not process.alive()


def test_second_signal_forces_the_stop() -> None:
    lines = Lines()
    process = child(IGNORES_SIGTERM, lines)
    keep_alive_until(process, lambda: "one ready" in lines)
    started = time.monotonic()

    with collected_stop_signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        stop_children([process], 600, signals)

    assert signals == [signal.SIGTERM, signal.SIGINT]
    assert not process.alive()
    assert time.monotonic() - started < 60


async def test_after_a_signal_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Child] = []
    monkeypatch.setattr(Child, "_start", started.append)
    stack = Stack(settings=load_settings(), workers=2)

    async def work(_: Mapping[str, Child]) -> None:
        raise AssertionError

    async with asyncio.timeout(30):
        await _run_processes(stack, os.environ, work, signals=[signal.SIGTERM], output=Lines())

    assert started == []
