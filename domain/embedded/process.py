"""One server process: started in its own session, recognised even after its owner was killed, and stopped reliably."""

import errno
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from domain.errors import ConfigurationError

START_SECONDS = 30.0


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until ``condition`` is true; return False if it is not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class ServerProcess:
    """A server and all processes that it forks.

    The processes inherit a lock on the pid file and hold it until the last of them has ended. A pid file that can be
    locked is therefore stale; one that cannot names a server of ours, even if its owner was killed by ``kill -9``. So a
    pid that the system has reused for another process is never signalled.
    """

    def __init__(
        self, name: str, pid_file: Path, log: Path, *, stop_signals: Sequence[tuple[signal.Signals, float]]
    ) -> None:
        """``stop_signals``: signals in the order in which they are sent, each with the seconds to wait after it."""
        self.name = name
        self._pid_file = pid_file
        self._log = log
        self._stop_signals = (*stop_signals, (signal.SIGKILL, 10.0))
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The main process's id, while any process of the server is running."""
        return self._recorded_pid() if self.alive() else None

    def alive(self) -> bool:
        """Return whether any process of this server is running, started by this owner or an earlier one."""
        try:
            os.close(self._lock_pid_file())
        except BlockingIOError:
            return True
        if self._child is not None:
            self._child.wait()  # it has closed its files, so it is about to end
            self._child = None
        return False

    def start(self, command: Sequence[str | Path], *, ready: Callable[[int], bool], **identity: Any) -> None:
        """Start ``command`` and wait until ``ready(pid)``. ``identity``: the user to run as, as arguments of Popen.

        Raises:
            ConfigurationError: it ended or did not become ready; the message contains the last line of its log.
        """
        try:
            lock = self._lock_pid_file()
        except BlockingIOError as error:
            raise ConfigurationError(f"{self.name} (process {self._recorded_pid()}) is already running") from error
        try:
            with self._log.open("ab") as log:
                child = subprocess.Popen(  # noqa: S603
                    [os.fspath(part) for part in command],
                    **identity,
                    cwd="/",
                    env=clean_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock],
                    start_new_session=True,  # Ctrl-C in the terminal must reach only the owner, which stops the server
                )
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{child.pid}\n".encode(), 0)
        finally:
            os.close(lock)
        self._child = child
        wait_until(lambda: child.poll() is not None or ready(child.pid), START_SECONDS)
        if child.poll() is not None or not ready(child.pid):
            self.stop()
            raise ConfigurationError(f"{self.name} did not start: {self._last_log_line()}")

    def stop(self, *first: signal.Signals) -> None:
        """Stop the server and wait until its last process has ended; send ``first`` before the usual signals."""
        for signal_, seconds in (*((signal_, 10.0) for signal_ in first), *self._stop_signals):
            if not self.alive():
                return
            self._send(signal_)
            wait_until(lambda: not self.alive(), seconds)
        if self.alive():
            raise ConfigurationError(f"{self.name} (process {self._recorded_pid()}) cannot be stopped")

    def _send(self, signal_: signal.Signals) -> None:
        pid = self._recorded_pid()
        if pid is not None:
            with suppress(ProcessLookupError):  # it has ended; its children are still shutting down
                os.kill(pid, signal_)

    def _recorded_pid(self) -> int | None:
        text = self._pid_file.read_text().strip() if self._pid_file.exists() else ""
        return int(text) if text.isdigit() else None

    def _lock_pid_file(self) -> int:
        pid_file = os.open(self._pid_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(pid_file)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise BlockingIOError(errno.EAGAIN, "locked") from error
            raise
        return pid_file

    def _last_log_line(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def clean_environment() -> dict[str, str]:
    """Return the environment without libpq's variables: the user's PGPORT must not apply to a private server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}
