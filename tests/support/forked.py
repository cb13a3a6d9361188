"""Processes forked from a server that has already imported Cistern, which saves 1 s of CPU time for each."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Final, Protocol

_FORKING: Final = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["api.main", "uvicorn.main", "worker.main"])
#: multiprocessing polls all its processes whenever it starts one, and an exit status can be read only once.
_LOCK: Final = threading.Lock()


class Process(Protocol):
    """The part of `subprocess.Popen` that tests use."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


class Forked:
    """``python -m COMMAND`` in a forked process, without starting a new interpreter."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        stderr: Path | None,
        folder: Path | None = None,
    ) -> None:
        """Start it, in ``folder`` if that is given."""
        if stderr is not None:
            stderr.touch()  # a reader may open the file before the fork
        self._process = _FORKING.Process(target=_run_command, args=(tuple(command), dict(environment), stderr, folder))
        with _LOCK:
            self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        with _LOCK:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run_command(
    command: Sequence[str], environment: Mapping[str, str], stderr: Path | None, folder: Path | None
) -> None:
    if folder is not None:
        os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if stderr is not None:
        with stderr.open("ab") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())
    sys.argv = list(command)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
