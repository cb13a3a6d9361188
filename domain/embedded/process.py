"""Child processes: started in a session of their own, stopped for certain, and servers recognised by their pid file."""

import errno
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from domain.errors import ConfigurationError

START_SECONDS = 30.0

#: A signal, and the seconds to wait after it for the end of a process.
StopStep = tuple[signal.Signals, float]


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Poll until ``condition`` is true, at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() <= deadline:
        time.sleep(0.01)


def stop_all(processes: Sequence["Process"], *steps: StopStep, hurry: Callable[[], bool] = lambda: False) -> None:
    """Send the signals in turn to the processes that are alive, and wait after each; not longer once ``hurry()``."""
    for number, seconds in steps:
        for process in processes:
            if process.alive():
                process.send(number)
        wait_until(lambda: hurry() or not any(process.alive() for process in processes), seconds)


class Process:
    """A child process, in a session of its own: Ctrl-C in the terminal must reach only its owner, which stops it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._child: subprocess.Popen[bytes] | None = None

    def alive(self) -> bool:
        """Return whether the process is running."""
        return self._child is not None and self._child.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process and those that it has forked. It must be alive."""
        if self._child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)

    def _launch(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[bytes]:
        """Start the process with these options of Popen."""
        self._child = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, start_new_session=True, **options
        )
        return self._child


class PidFile:
    """A file with a process id, locked by that process and its descendants until the last of them has ended.

    One that can be locked is stale. One that cannot names a process of ours, even if that was started by an owner who
    was killed by ``kill -9``. So a pid that the system has reused for another process is never signalled.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def lock(self) -> int:
        """Return a descriptor, which holds the lock until it and all that are inherited from it are closed.

        Raises:
            BlockingIOError: another process holds the lock.
            ConfigurationError: the file is a link.
        """
        descriptor = _open_own(self._path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.EACCES:
                raise BlockingIOError(errno.EAGAIN, "locked") from error
            raise
        return descriptor

    def write(self, descriptor: int, pid: int) -> None:
        """Replace the process id in a locked file."""
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{pid}\n".encode(), 0)

    def read(self) -> int | None:
        """Return the process id; None if there is none."""
        text = self._path.read_text().strip() if self._path.exists() else ""
        return int(text) if text.isdigit() else None


class ServerProcess(Process):
    """A server and all processes that it forks, started by this owner or by one that was killed.

    Args:
        name: for messages.
        data: the server's directory; its pid file and its log stand beside it.
    """

    #: How the server is stopped, gentle signals first.
    stop_steps: ClassVar[tuple[StopStep, ...]]

    def __init__(self, name: str, data: Path) -> None:
        super().__init__(name)
        self._data = data
        self._pid_file = PidFile(data.with_suffix(".pid"))
        self._log = data.with_suffix(".log")

    @property
    def pid(self) -> int | None:
        """The main process's id, while any process of the server is running."""
        return self._pid_file.read() if self.alive() else None

    def alive(self) -> bool:
        """Return whether any process of this server is running."""
        try:
            os.close(self._pid_file.lock())
        except BlockingIOError:
            return True
        if self._child is not None:
            self._child.wait()  # it has closed its files, so it is about to end
            self._child = None
        return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the main process only, which passes it on as its documentation says."""
        pid = self._pid_file.read()
        if pid is not None:
            with suppress(ProcessLookupError):  # it has ended; its children are still shutting down
                os.kill(pid, number)

    def stop(self, *first: signal.Signals) -> None:
        """Stop the server and wait until its last process has ended; send ``first`` before the usual signals.

        Raises:
            ConfigurationError: it is still running.
        """
        stop_all([self], *((number, 10.0) for number in first), *self.stop_steps, (signal.SIGKILL, 10.0))
        if self.alive():
            raise ConfigurationError(f"{self.name} (process {self._pid_file.read()}) cannot be stopped")

    def _run(self, command: Sequence[str | Path], *, ready: Callable[[int], bool], **identity: Any) -> None:
        """Start ``command`` and wait until ``ready(pid)``. ``identity``: the user to run as, as arguments of Popen.

        Raises:
            ConfigurationError: it ended or did not become ready; the message contains the last line of its log.
        """
        try:
            lock = self._pid_file.lock()
        except BlockingIOError as error:
            raise ConfigurationError(f"{self.name} (process {self._pid_file.read()}) is already running") from error
        try:
            with open(self._log, "ab", opener=_open_own) as log:
                options = {"cwd": "/", "env": clean_environment(), "stdout": log, "stderr": log, "pass_fds": [lock]}
                child = self._launch(command, **options, **identity)
            self._pid_file.write(lock, child.pid)
        finally:
            os.close(lock)
        wait_until(lambda: child.poll() is not None or ready(child.pid), START_SECONDS)
        if child.poll() is not None or not ready(child.pid):
            self.stop()
            raise ConfigurationError(f"{self.name} did not start: {self._last_log_line()}")

    def _last_log_line(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _open_own(path: str | Path, flags: int) -> int:
    """Open or create a file that only this user may read. A link in its place is not followed.

    Raises:
        ConfigurationError: there is one.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ConfigurationError(f"{path} is a link, where there should be a file of Cistern's own") from error
        raise


def clean_environment() -> dict[str, str]:
    """Return the environment without libpq's variables: the user's PGPORT must not apply to a private server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}
