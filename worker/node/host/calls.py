"""Calls that may never return: the host's tools, and system calls on a device whose file has gone away."""

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from worker.node.host.errors import HostFailed, HostStuck, HostUnable

#: The tools of util-linux and of the file systems, in English, whatever the service's environment is.
ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
TOOL_SECONDS: Final = 60.0
KILL_SECONDS: Final = 1.0  # a process in an uninterruptible call ignores the signal, and is left behind

_UNANSWERED: Final = "The node's kernel has not answered within {:g} s."

_T = TypeVar("_T")


class ToolFailed(HostFailed):
    """A tool ended with an error; the message has its words."""

    def __init__(self, command: tuple[str, ...], status: int, words: str) -> None:
        super().__init__(f"{command[0]}: {words or f'exit status {status}'}")
        self.status = status
        self.words = words


def run(*command: str, seconds: float = TOOL_SECONDS) -> str:
    """Run a tool to its end and return what it printed.

    Raises:
        ToolFailed: its exit status is not 0.
        HostStuck: it has not ended within ``seconds``.
        HostUnable: there is no such tool.
    """
    try:
        child = subprocess.Popen(  # noqa: S603 (no shell)
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=ENVIRONMENT,
            cwd="/",
        )
    except FileNotFoundError:
        raise HostUnable(f"The node has no {command[0]}; install it.") from None
    try:
        output, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(child)
        raise HostStuck(f"{command[0]} has not ended within {seconds:g} s.") from None
    words = output.decode(errors="replace").strip()
    if child.returncode != 0:
        raise ToolFailed(command, child.returncode, words)
    return words


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    try:
        child.communicate(timeout=KILL_SECONDS)
    except subprocess.TimeoutExpired:
        if child.stdout:
            child.stdout.close()


def within(seconds: float, function: Callable[..., _T], *arguments: Any) -> _T:
    """Return what the function returns, or give up waiting for it.

    Raises:
        HostStuck: it has not returned within ``seconds``. It goes on in a thread that does not keep the process alive.
    """
    future = _started(function, arguments)
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # the function's own
            raise
        raise HostStuck(_UNANSWERED.format(seconds)) from None


async def in_thread(seconds: float, function: Callable[..., _T], *arguments: Any) -> _T:
    """Do as `within` for an event loop. It has no pool of threads that hanging calls could fill."""
    future = _started(function, arguments)
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
    except TimeoutError:
        if future.done() and not future.cancelled():
            raise
        raise HostStuck(_UNANSWERED.format(seconds)) from None


def _started(function: Callable[..., _T], arguments: tuple[Any, ...]) -> "Future[_T]":
    future: Future[_T] = Future()
    future.set_running_or_notify_cancel()  # so that a caller that gives up cannot cancel it

    def call() -> None:
        try:
            result = function(*arguments)
        except BaseException as error:  # noqa: BLE001 (it is the caller's)
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=call, name=f"host {getattr(function, '__name__', 'call')}", daemon=True).start()
    return future


def describe(error: OSError) -> str:
    """Return the words for an error number, without the path."""
    return os.strerror(error.errno) if error.errno else str(error)
