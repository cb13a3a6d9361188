"""System calls of the file driver, and the translation of their errors to storage errors."""

import errno
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from domain.errors import StorageError
from domain.storage.errors import AccessDenied, SizeUnsupported, StorageFull, TransientStorageError, VolumeMissing

ERRORS_BY_ERRNO: dict[int | None, type[StorageError]] = {
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EFBIG: SizeUnsupported,
    errno.EACCES: AccessDenied,
    errno.EPERM: AccessDenied,
    errno.EROFS: AccessDenied,
}


@contextmanager
def domain_errors() -> Iterator[None]:
    """Translate system errors to a `StorageError`; errors not in the table are transient."""
    try:
        yield
    except OverflowError as error:
        raise as_storage_error(SizeUnsupported, error) from error
    except OSError as error:
        raise as_storage_error(ERRORS_BY_ERRNO.get(error.errno, TransientStorageError), error) from error


def as_storage_error(kind: type[StorageError], error: Exception) -> StorageError:
    """Return the storage error, with the system's message appended to its own."""
    return kind(f"{inspect.getdoc(kind)} ({error})")


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open a file as a bare descriptor, as truncate, flock and fsync require."""
    handle = os.open(path, flags | os.O_CLOEXEC, 0o660)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def opened_data(path: Path) -> Iterator[int]:
    """Open a volume's data.

    Raises:
        VolumeMissing: the file does not exist.
    """
    if not path.exists():
        raise VolumeMissing
    with opened(path, os.O_RDWR) as handle:
        yield handle


def resize(handle: int, size: int) -> None:
    """Set a file's length; growing adds a hole, which uses no space."""
    try:
        os.ftruncate(handle, size)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise as_storage_error(SizeUnsupported, error) from error


def sync_folder(path: Path) -> None:
    """Sync a directory, so that the names in it survive a power failure."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as handle:
        os.fsync(handle)
