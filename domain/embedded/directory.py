"""The data directory: its owner and the location of its sockets.

One process at a time owns the directory. Sockets are in ``run/``. If that path is too long for a unix socket (about 100
bytes) or needs quoting in a URL, ``run`` is a link to a private directory in the system's temporary directory.
"""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from domain.embedded.process import PidFile
from domain.errors import ConfigurationError
from domain.permissions import others_that_may_write

MAX_SOCKET_DIRECTORY_BYTES = 80  # macOS allows 103 bytes for the whole socket path, Linux 107
URL_SAFE = re.compile(r"[A-Za-z0-9/._-]+")
TEMPORARY_PREFIX = "cistern-"


class DataDirectory:
    """A directory that this process owns exclusively between ``claim`` and ``release``."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.run = self.path / "run"
        self._pid_file = PidFile(self.path / "lock")
        self._lock: int | None = None

    def claim(self) -> None:
        """Create the directory if it is missing, and lock it.

        Raises:
            ConfigurationError: the directory cannot be used, others may change what is in it, or another process owns
                it.
        """
        try:
            self._refuse_others()
            self._create()
            self._refuse_others()  # who may write to /tmp may have been faster
            self._lock = self._pid_file.lock()
            self._pid_file.write(self._lock, os.getpid())
        except BlockingIOError as error:
            owner = self._pid_file.read() or "unknown"
            raise ConfigurationError(
                f"another cistern up (pid {owner}) uses this data directory: {self.path}"
            ) from error
        except OSError as error:
            raise ConfigurationError(f"data directory {self.path}: {_reason(error)}") from error

    def make_run(self) -> None:
        """Create an empty directory for sockets and set ``run`` to its real path."""
        self._remove_run()
        link = self.path / "run"
        if _usable_for_sockets(link):
            link.mkdir(mode=0o700)
            self.run = link
        else:
            self.run = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
            link.symlink_to(self.run)

    def release(self) -> None:
        """Remove the sockets and unlock the directory."""
        if self._lock is not None:
            self._remove_run()
            os.close(self._lock)
            self._lock = None

    def _refuse_others(self) -> None:
        """Refuse a directory in which others may put links in the place of files, or which they may exchange."""
        for folder in (self.path, *self.path.parents):
            if not folder.is_dir():
                continue
            status = folder.stat()
            others = others_that_may_write(status)
            # In a sticky directory, such as /tmp, only its owner and root rename or remove what belongs to others.
            is_sticky = status.st_mode & stat.S_ISVTX and status.st_uid in (0, os.geteuid())
            if others and (folder == self.path or not is_sticky):
                where = "" if folder == self.path else f" {folder}:"
                raise ConfigurationError(
                    f"data directory {self.path}:{where} {others}; choose another directory with --data-dir"
                )

    def _create(self) -> None:
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        for folder in missing:  # under root, PostgreSQL runs as another user, who needs to traverse these folders
            folder.chmod(0o711 if os.geteuid() == 0 else 0o700)

    def _remove_run(self) -> None:
        link = self.path / "run"
        if not link.is_symlink():
            shutil.rmtree(link, ignore_errors=True)
            return
        target = link.readlink()
        if self._is_run(target):
            shutil.rmtree(target, ignore_errors=True)
        link.unlink()

    def _is_run(self, target: Path) -> bool:
        """Return whether a directory is one that `make_run` has made, also for an owner that was killed."""
        owners = {os.geteuid()}
        if os.geteuid() == 0:  # then it belongs to the user who runs PostgreSQL
            with suppress(FileNotFoundError):
                owners.add((self.path / "postgres").lstat().st_uid)
        try:
            status = target.lstat()
        except OSError:
            return False
        return (
            target.parent == Path(tempfile.gettempdir()).absolute()
            and target.name.startswith(TEMPORARY_PREFIX)
            and stat.S_ISDIR(status.st_mode)
            and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
            and status.st_uid in owners
        )


def refuse_impassable(path: Path) -> None:
    """Refuse a path that only root can reach. Cistern never changes the mode of a folder that it did not create.

    Raises:
        ConfigurationError: a folder on the path cannot be traversed by other users; the message names it.
    """
    for folder in reversed((path, *path.parents)):
        if folder.is_dir() and not folder.stat().st_mode & stat.S_IXOTH:
            raise ConfigurationError(
                f"data directory {path}: PostgreSQL does not run as root, and its user cannot traverse {folder} "
                f"(mode {stat.S_IMODE(folder.stat().st_mode):04o}); choose another directory with --data-dir"
            )


@contextmanager
def temporary_data_dir() -> Iterator[Path]:
    """Create an empty data directory that the servers' user can reach; remove it at the end."""
    path = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
    try:
        path.chmod(0o711 if os.geteuid() == 0 else 0o700)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _usable_for_sockets(path: Path) -> bool:
    return len(os.fsencode(path)) <= MAX_SOCKET_DIRECTORY_BYTES and bool(URL_SAFE.fullmatch(str(path)))


def _reason(error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "not a directory"
    return (error.strerror or str(error)).lower()
