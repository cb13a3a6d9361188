"""One server process: started in a session of its own, recognised after its owner was killed, stopped for good."""

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
    """Whether ``condition`` came true within ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class ServerProcess:
    """A server and everything it forks.

    The processes inherit a lock on the pid file and hold it until the last of them is gone. So a pid file that can be
    locked names nobody, and one that cannot names a server of ours, also when its owner died by ``kill -9``: a number
    that the system has given to some other process is never signalled.
    """

    def __init__(
        self, name: str, pid_file: Path, log: Path, *, patience: Sequence[tuple[signal.Signals, float]]
    ) -> None:
        self.name = name
        self._pid_file = pid_file
        self._log = log
        self._patience = (*patience, (signal.SIGKILL, 10.0))
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The main process's id, as long as any of its processes lives."""
        return self._recorded_pid() if self.alive() else None

    def alive(self) -> bool:
        """Whether a process of this server is left, from this owner or an earlier one."""
        try:
            os.close(self._locked_pid_file())
        except BlockingIOError:
            return True
        if self._child is not None:
            self._child.wait()  # its files are closed already, so it is as good as gone
            self._child = None
        return False

    def start(self, command: Sequence[str | Path], *, ready: Callable[[int], bool], **identity: Any) -> None:
        """Start ``command`` and wait until ``ready(pid)``. ``identity`` says which user it runs as.

        Raises:
            ConfigurationError: with the last line of its log, when it ended or did not become ready.
        """
        try:
            lock = self._locked_pid_file()
        except BlockingIOError as error:
            raise ConfigurationError(f"{self.name} (process {self._recorded_pid()}) runs already") from error
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
                    start_new_session=True,  # a Ctrl-C in the terminal is its owner's business
                )
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{child.pid}\n".encode(), 0)
        finally:
            os.close(lock)
        self._child = child
        wait_until(lambda: child.poll() is not None or ready(child.pid), START_SECONDS)
        if child.poll() is not None or not ready(child.pid):
            self.stop()
            raise ConfigurationError(f"{self.name} did not start: {self._last_words()}")

    def stop(self, *urgent: signal.Signals) -> None:
        """Stop the server and wait until its last process is gone; ever harder, beginning with ``urgent``."""
        for number, seconds in (*((number, 10.0) for number in urgent), *self._patience):
            if not self.alive():
                return
            self._signal(number)
            wait_until(lambda: not self.alive(), seconds)
        if self.alive():
            raise ConfigurationError(f"{self.name} (process {self._recorded_pid()}) cannot be stopped")

    def _signal(self, number: signal.Signals) -> None:
        pid = self._recorded_pid()
        if pid is not None:
            with suppress(ProcessLookupError):  # its children are still on their way out
                os.kill(pid, number)

    def _recorded_pid(self) -> int | None:
        text = self._pid_file.read_text().strip() if self._pid_file.exists() else ""
        return int(text) if text.isdigit() else None

    def _locked_pid_file(self) -> int:
        pid_file = os.open(self._pid_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(pid_file)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise BlockingIOError(errno.EAGAIN, "locked") from error
            raise
        return pid_file

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def clean_environment() -> dict[str, str]:
    """The environment without libpq's variables: a PGPORT of the user's must not move a private server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}
