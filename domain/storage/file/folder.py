"""A directory of a file backend, held by its descriptor: the only module of the driver that opens, links and removes.

Below the root, whoever may write to a directory may put a link there, or a FIFO, or a device. So every step goes from
one descriptor to a name in it, and opens directories and regular files only. What else is found there is an error of
the volume that it belongs to.
"""

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Concatenate, Final, ParamSpec, Self, TypeVar
from uuid import uuid4

from domain.storage.context import Grant
from domain.storage.errors import AccessDenied, PermanentStorageError, StorageBusy

P = ParamSpec("P")
T = TypeVar("T")

#: Opening a FIFO would wait for its other end, and a terminal would become that of the process.
_FILE: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_DIRECTORY: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
_MODE: Final = 0o660
#: Without regard to the umask of the process, nobody else may write to a root or to a directory in it.
_DIRECTORY_MODE: Final = 0o775
#: Seconds in which another process, such as one that replaces a file, gives up its lease on it (see `leases`).
LEASE_SECONDS = 2.0
_LEASE_POLL_SECONDS: Final = 0.005
#: How deep directories may be nested in one that is removed; those of the driver have two levels.
_MAX_DEPTH: Final = 16

_KINDS: Final = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def _naming_the_path(
    method: Callable[Concatenate["Folder", str, P], T],
) -> Callable[Concatenate["Folder", str, P], T]:
    """Let the system's errors name the whole path: the system itself knows no more than the name."""

    @wraps(method)
    def named(self: "Folder", name: str, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, name, *args, **kwargs)
        except OSError as error:
            error.filename, error.filename2 = str(self.path / name), None
            raise

    return named


class Folder:
    """An open directory. ``path`` is for messages only; names are single ones, never paths."""

    def __init__(self, handle: int, path: Path) -> None:
        self.handle = handle
        self.path = path

    @classmethod
    def at(cls, root: Path) -> Self:
        """Open a root. Links on the way to it are followed: that path is the operator's.

        Raises:
            FileNotFoundError: there is none.
        """
        return cls(os.open(root, _DIRECTORY), root)

    @classmethod
    def make_root(cls, root: Path) -> Self:
        """Create a root and its parents, unless they exist, and open it."""
        root.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        return cls.at(root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)

    # --- open ------------------------------------------------------------------------------------------------

    def folder(self, name: str) -> "Folder":
        """Open a directory.

        Raises:
            FileNotFoundError: nothing has this name.
            AccessDenied: a link or a file has it.
        """
        return Folder(self._open(name, _DIRECTORY | os.O_NOFOLLOW, stat.S_ISDIR), self.path / name)

    @contextmanager
    def within(self, place: PurePosixPath) -> Iterator["Folder"]:
        """Open the directory that contains a place below this one, one step after the other."""
        folder = self
        try:
            for name in place.parent.parts:
                outer, folder = folder, folder.folder(name)
                if outer is not self:
                    os.close(outer.handle)
            yield folder
        finally:
            if folder is not self:
                os.close(folder.handle)

    @contextmanager
    def opened(self, name: str, flags: int) -> Iterator[int]:
        """Open a regular file as a bare descriptor, as truncate, flock and fsync require.

        Raises:
            FileNotFoundError: nothing has this name.
            AccessDenied: a link, a FIFO, a device or a directory has it.
            StorageBusy: another process has held a lease on it for `LEASE_SECONDS`.
        """
        handle = self._open_leased(name, flags | _FILE)
        try:
            if not stat.S_ISREG(mode := os.fstat(handle).st_mode):
                raise self._refusal(name, mode)
            yield handle
        finally:
            os.close(handle)

    @contextmanager
    def temporary_file(self) -> Iterator[int]:
        """Open a new file without a name."""
        name = f".{uuid4().hex}.tmp"
        with self.opened(name, os.O_RDWR | os.O_CREAT | os.O_EXCL) as handle:
            os.unlink(name, dir_fd=self.handle)
            yield handle

    def _open_leased(self, name: str, flags: int) -> int:
        deadline = time.monotonic() + LEASE_SECONDS
        while True:
            try:
                return self._open(name, flags, stat.S_ISREG)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StorageBusy from None
            time.sleep(_LEASE_POLL_SECONDS)

    @_naming_the_path
    def _open(self, name: str, flags: int, is_wanted: Callable[[int], bool]) -> int:
        try:
            return os.open(name, flags, _MODE, dir_fd=self.handle)
        except FileNotFoundError:
            raise
        except OSError:  # a link, a FIFO and a device without a driver are refused by different errnos
            status = self.status(name)
            if status is not None and not is_wanted(status.st_mode):
                raise self._refusal(name, status.st_mode) from None
            raise

    # --- look ------------------------------------------------------------------------------------------------

    @_naming_the_path
    def status(self, name: str) -> os.stat_result | None:
        """Return what the system says of a name, which may be a link; None if nothing has it."""
        try:
            return os.stat(name, dir_fd=self.handle, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """Return a file's length in bytes, None if there is none.

        Raises:
            AccessDenied: it is not a regular file.
        """
        status = self.status(name)
        if status is None:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise self._refusal(name, status.st_mode)
        return status.st_size

    def entries(self) -> Iterator["os.DirEntry[str]"]:
        """Yield what is in the directory, one by one: it may be large."""
        with os.scandir(self.handle) as entries:
            yield from entries

    def _refusal(self, name: str, mode: int) -> AccessDenied:
        kind = _KINDS.get(stat.S_IFMT(mode), "a device")
        return AccessDenied(f"{self.path / name} is {kind}, where the backend keeps a file or directory of its own.")

    # --- change ----------------------------------------------------------------------------------------------

    @_naming_the_path
    def make(self, name: str) -> None:
        """Create a directory, unless something has this name."""
        with suppress(FileExistsError):
            os.mkdir(name, _DIRECTORY_MODE, dir_fd=self.handle)

    @_naming_the_path
    def link(self, name: str, new: str) -> None:
        """Give a file a further name.

        Raises:
            FileExistsError: something has the new name. Unlike a rename, a link never replaces.
        """
        os.link(name, new, src_dir_fd=self.handle, dst_dir_fd=self.handle, follow_symlinks=False)

    @_naming_the_path
    def replace(self, name: str, replaced: str, grant: Grant) -> None:
        """Give a file the name of another one, whose blocks are freed."""
        with grant.blocking_call("replace"):
            os.replace(name, replaced, src_dir_fd=self.handle, dst_dir_fd=self.handle)

    @_naming_the_path
    def move(self, name: str, target: "Folder", new: str) -> None:
        """Move what has this name, be it a link, to another directory."""
        os.rename(name, new, src_dir_fd=self.handle, dst_dir_fd=target.handle)

    @_naming_the_path
    def unlink(self, name: str, grant: Grant) -> None:
        """Remove a file or a link, if it exists. To free a large file's blocks takes long on some file systems."""
        with grant.blocking_call("remove"), suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.handle)

    @_naming_the_path
    def remove_empty(self, name: str) -> None:
        """Remove a directory.

        Raises:
            OSError: it is not empty, or there is none.
        """
        os.rmdir(name, dir_fd=self.handle)

    def remove(self, name: str, grant: Grant, depth: int = 1) -> None:
        """Remove whatever has this name, with all that is in it; another process may be removing the same.

        Raises:
            PermanentStorageError: directories are nested deeper than the driver's own.
        """
        status = self.status(name)
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            self.unlink(name, grant)
            return
        if depth > _MAX_DEPTH:
            raise PermanentStorageError(f"{self.path / name} is nested too deep: remove it by hand.")
        with suppress(FileNotFoundError):
            with self.folder(name) as folder:
                for entry in list(folder.entries()):
                    folder.remove(entry.name, grant, depth + 1)
            self.remove_empty(name)

    def sync(self, grant: Grant) -> None:
        """Sync the directory, so that the names in it survive a power failure."""
        with grant.blocking_call("sync"):
            os.fsync(self.handle)
