"""Calls that may never return: the host's tools, and system calls on a device whose file has gone away."""

import os
import subprocess
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from worker.node.host.errors import HostFailed, HostStuck, HostUnable

#: The tools of util-linux and of the file systems, in English, whatever the service's environment is.
ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
TOOL_SECONDS: Final = 60.0
KILL_SECONDS: Final = 1.0  # a process in an uninterruptible call ignores the signal, and is left behind

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
    results: list[_T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function(*arguments))
        except BaseException as error:  # noqa: BLE001 (raised again below)
            errors.append(error)

    thread = threading.Thread(target=call, name=f"host {getattr(function, '__name__', 'call')}", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise HostStuck(f"The node's kernel has not answered within {seconds:g} s.")
    return results[0]


def describe(error: OSError) -> str:
    """Return the words for an error number, without the path."""
    return os.strerror(error.errno) if error.errno else str(error)
