"""The data directory: who may use it, and where its sockets are.

One process at a time owns it. Sockets live in ``run/``, unless its path is too long for a unix socket (some hundred
bytes): then ``run`` is a link to a private directory under the system's temporary one.
"""

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from domain.errors import ConfigurationError

LONGEST_SOCKET_DIRECTORY = 80  # bytes; macOS allows 103 for the whole path, Linux 107
PLAIN = re.compile(r"[A-Za-z0-9/._-]+")  # what needs no quoting in any URL
TEMPORARY = "cistern-"


class DataDirectory:
    """A directory that is this process's own between ``claim`` and ``release``."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.run = self.path / "run"
        self._lock: int | None = None

    def claim(self) -> None:
        """Make the directory if it is missing and take it.

        Raises:
            ConfigurationError: it cannot be used, or another process uses it.
        """
        try:
            self._make()
            self._lock = self._locked()
        except OSError as error:
            raise ConfigurationError(f"data directory {self.path}: {_reason(error)}") from error

    def make_run(self) -> None:
        """Make an empty directory for sockets and set ``run`` to its real place."""
        self._remove_run()
        link = self.path / "run"
        if _fits(link):
            link.mkdir(mode=0o700)
            self.run = link
        else:
            self.run = Path(tempfile.mkdtemp(prefix=TEMPORARY))
            link.symlink_to(self.run)

    def release(self) -> None:
        """Remove the sockets and let others have the directory."""
        if self._lock is not None:
            self._remove_run()
            os.close(self._lock)
            self._lock = None

    def _make(self) -> None:
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        for folder in missing:  # root's servers run as another user, who must be able to pass
            folder.chmod(0o711 if os.geteuid() == 0 else 0o700)

    def _locked(self) -> int:
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(lock, 20).decode().strip() or "unknown"
            os.close(lock)
            raise ConfigurationError(
                f"another cistern up (pid {owner}) uses this data directory: {self.path}"
            ) from error
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        return lock

    def _remove_run(self) -> None:
        link = self.path / "run"
        if not link.is_symlink():
            shutil.rmtree(link, ignore_errors=True)
            return
        if link.readlink().name.startswith(TEMPORARY):
            shutil.rmtree(link.readlink(), ignore_errors=True)
        link.unlink()


def refuse_closed(path: Path) -> None:
    """Refuse a place that only root can reach; opening somebody's folders is not for us to do.

    Raises:
        ConfigurationError: naming the folder.
    """
    for folder in reversed((path, *path.parents)):
        if folder.is_dir() and not folder.stat().st_mode & stat.S_IXOTH:
            raise ConfigurationError(
                f"data directory {path}: PostgreSQL does not run as root, and its user cannot pass {folder} "
                f"(mode {stat.S_IMODE(folder.stat().st_mode):04o}); choose another place with --data-dir"
            )


@contextmanager
def temporary_data_dir() -> Iterator[Path]:
    """A fresh data directory that the servers' user can reach; removed at the end."""
    path = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    try:
        path.chmod(0o711 if os.geteuid() == 0 else 0o700)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= LONGEST_SOCKET_DIRECTORY and bool(PLAIN.fullmatch(str(path)))


def _reason(error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "not a directory"
    return (error.strerror or str(error)).lower()
