"""System calls of the file driver on open files: resize, sync, copy, reserve; and errors as storage errors."""

import ctypes
import errno
import fcntl
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Final, TypeVar

from domain.errors import StorageError
from domain.storage.context import Grant
from domain.storage.errors import AccessDenied, SizeUnsupported, StorageFull, TransientStorageError
from domain.tasks import in_daemon_thread

T = TypeVar("T")

ERRORS_BY_ERRNO: dict[int | None, type[StorageError]] = {
    errno.ENOSPC: StorageFull,
    errno.EDQUOT: StorageFull,
    errno.EFBIG: SizeUnsupported,
    errno.EACCES: AccessDenied,
    errno.EPERM: AccessDenied,
    errno.EROFS: AccessDenied,
    errno.EISDIR: AccessDenied,
    errno.ELOOP: AccessDenied,
}
# Errors that would stop any method of copying. File systems report "not supported" by many different errnos, so every
# other error falls back to a simpler method, which fails itself if the problem is real. Coreutils' cp does the same.
FATAL_ERRNOS = {errno.EIO, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}

FICLONE: Final = 0x40049409
FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
COPY_SLICE_BYTES = 8 * 1024 * 1024
SYNC_BYTES = 16 * COPY_SLICE_BYTES
#: Bytes reserved by one system call; between two of them the attempt can be stopped and records progress.
RESERVE_SLICE_BYTES = 1 << 30

#: Maximum number of extents of a file that `bytes_in_use` looks at.
MAX_EXTENTS = 10_000

ST_BLOCKS_UNIT = 512  # bytes; independent of the file system's own block size

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@contextmanager
def domain_errors() -> Iterator[None]:
    """Translate system errors to a `StorageError`; errors not in the table are transient."""
    try:
        yield
    except OverflowError as error:
        raise _as_storage_error(SizeUnsupported, error) from error
    except OSError as error:
        raise _as_storage_error(ERRORS_BY_ERRNO.get(error.errno, TransientStorageError), error) from error


async def look(step: Callable[[], T]) -> T:
    """Look at storage that may not answer: apart from its work, and without keeping the process from ending."""

    def translated() -> T:
        with domain_errors():
            return step()

    return await in_daemon_thread(translated)


def _as_storage_error(kind: type[StorageError], error: Exception) -> StorageError:
    """Return the storage error, with the system's message appended to its own."""
    return kind(f"{inspect.getdoc(kind)} ({error})")


def sync(handle: int, grant: Grant) -> None:
    """Sync a file, so that its content survives a power failure."""
    with grant.blocking_call("sync"):
        os.fsync(handle)


def resize(handle: int, size: int, grant: Grant) -> None:
    """Set a file's length; growing adds a hole, which uses no space."""
    try:
        with grant.blocking_call("resize"):
            os.ftruncate(handle, size)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise _as_storage_error(SizeUnsupported, error) from error


def match_replaced_file(draft: int, replaced: int, grant: Grant) -> int:
    """Make the draft at least as long as the file it replaces, with the same owner and mode; return its size.

    A process that cannot give files to another owner keeps its own, and then its own mode too: a mode says what the
    owner and the group may do. Whatever the mode was, nothing here becomes a program that runs as its owner.
    """
    status = os.fstat(replaced)
    if os.fstat(draft).st_size < status.st_size:
        resize(draft, status.st_size, grant)
    with suppress(PermissionError):
        os.fchown(draft, status.st_uid, status.st_gid)
        os.fchmod(draft, status.st_mode & 0o777)
    sync(draft, grant)
    return os.fstat(draft).st_size


def copy(source: int, target: int, grant: Grant, before_copying: Callable[[], object] = lambda: None) -> int:
    """Copy a file into an empty one; return the size in bytes.

    Shares the file's blocks if the file system can, else copies its data and keeps its holes, in slices: so a copy can
    be stopped and reports its progress. If the source is being written to, sharing its blocks is atomic; copying them
    is not. ``before_copying`` is called if blocks cannot be shared, and may raise.
    """
    if not _share(source, target, grant):
        before_copying()
        _copy_data(source, target, grant)
    size = os.fstat(target).st_size
    grant.report(size, size)
    return size


def _share(source: int, target: int, grant: Grant) -> bool:
    """Share all blocks, copy on write, and return True; False if the file system cannot (XFS and Btrfs can)."""
    try:
        with grant.blocking_call("reflink"):
            fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        _raise_if_fatal(error)
        return False
    return True


def _copy_data(source: int, target: int, grant: Grant) -> None:
    size = os.fstat(source).st_size
    resize(target, size, grant)
    unsynced = 0
    for start, end in _slices(source, size):
        grant.check()
        offset = start
        while offset < end:
            offset += _copy_some(source, target, offset, end - offset)
        grant.report(end, size)
        unsynced += end - start
        if unsynced >= SYNC_BYTES:  # a single sync at the end would take long, and show no progress
            with grant.blocking_call("sync"):
                os.fdatasync(target)
            unsynced = 0


def _slices(handle: int, size: int) -> Iterator[tuple[int, int]]:
    for start, end in _extents(handle, size):
        for offset in range(start, end, COPY_SLICE_BYTES):
            yield offset, min(offset + COPY_SLICE_BYTES, end)


def _extents(handle: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the extents that hold data, in order; the whole file if the file system cannot find holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(handle, end, os.SEEK_DATA)
            stop = os.lseek(handle, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data
                return
            _raise_if_fatal(error)
            start, stop = end, size
        end = min(stop, size)
        if start < end:
            yield start, end


def bytes_in_use(handle: int) -> int:
    """Return how many bytes of a file hold data.

    Blocks that are only reserved, such as by an earlier ``allocate=full``, hold none. They are recognised as holes, as
    far as the file system can tell, and in files of up to `MAX_EXTENTS` extents; in others they are counted.
    """
    status = os.fstat(handle)
    allocated = min(status.st_blocks * ST_BLOCKS_UNIT, status.st_size)
    if allocated == 0:
        return 0
    extents = list(islice(_extents(handle, status.st_size), MAX_EXTENTS + 1))
    if len(extents) > MAX_EXTENTS:
        return allocated
    return min(allocated, sum(stop - start for start, stop in extents))


def _copy_some(source: int, target: int, offset: int, count: int) -> int:
    """Copy between 1 and ``count`` bytes, in the kernel if it can; return how many."""
    try:
        if copied := os.copy_file_range(source, target, count, offset, offset):
            return copied  # some kernels return 0, which means end of file, when they cannot copy
    except OSError as error:
        _raise_if_fatal(error)
    content = os.pread(source, count, offset)
    if not content:
        raise TransientStorageError("The file became shorter while it was copied.")
    return os.pwrite(target, content, offset)


def _raise_if_fatal(error: OSError) -> None:
    if error.errno in FATAL_ERRNOS:
        raise error


def grow_reserved(handle: int, size: int, grant: Grant) -> None:
    """Grow a file to ``size`` bytes with all new blocks reserved (``allocate=full``), or leave it as it was.

    Blocks are reserved beyond the end of the file first; then the file gets its new length in one step. So it always
    has the old length or the new one, and blocks reserved by a killed attempt are used by the next one or released.
    """
    try:
        reserve_range(handle, os.fstat(handle).st_size, size, grant)
        resize(handle, size, grant)
    except BaseException:
        release_blocks(handle, grant)
        raise


def reserve_range(handle: int, start: int, end: int, grant: Grant) -> None:
    """Reserve the blocks from ``start`` to ``end``; what they hold stays."""
    for at in range(start, end, RESERVE_SLICE_BYTES):
        grant.check()
        with grant.blocking_call("allocate"):
            reserve(handle, at, min(RESERVE_SLICE_BYTES, end - at))


def punch_holes(handle: int, grant: Grant) -> None:
    """Release the blocks of a file that are allocated and hold no data, as far as the file system can."""
    end, size = 0, os.fstat(handle).st_size
    with suppress(OSError):
        for start, stop in (*_extents(handle, size), (size, size)):
            if start > end:
                with grant.blocking_call("allocate"):
                    _fallocate(handle, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, end, start - end)
            end = stop


def release_blocks(handle: int, grant: Grant) -> None:
    """Release the blocks that are reserved beyond the end of a file."""
    resize(handle, os.fstat(handle).st_size, grant)


def reserve(handle: int, start: int, length: int) -> None:
    """Reserve the blocks of a range, which may lie beyond the end of the file.

    Does not use `os.posix_fallocate`: on a file system without this feature, it writes to every single block.

    Raises:
        OSError: the file system cannot reserve blocks, or is full.
    """
    _fallocate(handle, FALLOC_FL_KEEP_SIZE, start, length)


def _fallocate(handle: int, mode: int, start: int, length: int) -> None:
    if _libc is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if _libc.fallocate(handle, mode, ctypes.c_int64(start), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def require_reserving(handle: int) -> None:
    """Raise the OSError if the file system of an empty file cannot reserve blocks; a full file system passes."""
    try:
        reserve(handle, 0, 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def copy_file(source: int, draft: int, min_size: int, grant: Grant) -> None:
    """Copy into a new file, extend it to ``min_size`` bytes if it is shorter, and sync it."""
    if copy(source, draft, grant) < min_size:
        resize(draft, min_size, grant)
    sync(draft, grant)
