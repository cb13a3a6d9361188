"""Copies one file's content into another: shares its blocks if the file system can, else copies data and keeps holes.

A copy is made in slices, so that it can be stopped and reports its progress.
"""

import errno
import fcntl
import os
from collections.abc import Iterator

from domain.storage.context import Grant
from domain.storage.errors import TransientStorageError
from domain.storage.file.disk import resize

FICLONE = 0x40049409
SLICE_BYTES = 8 * 1024 * 1024
SYNC_BYTES = 16 * SLICE_BYTES

# Errors that would stop any method of copying. File systems report "not supported" by many different errnos, so every
# other error falls back to a simpler method, which fails itself if the problem is real. Coreutils' cp does the same.
FATAL_ERRNOS = {errno.EIO, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}


def copy(source: int, target: int, grant: Grant) -> int:
    """Copy a file into an empty one; return the size in bytes.

    If the source is being written to, sharing its blocks is atomic; copying them is not.
    """
    if not _share(source, target):
        _copy_data(source, target, grant)
    size = os.fstat(target).st_size
    grant.report(size, size)
    return size


def _share(source: int, target: int) -> bool:
    """Share all blocks, copy on write, and return True; False if the file system cannot (XFS and Btrfs can)."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        _raise_if_fatal(error)
        return False
    return True


def _copy_data(source: int, target: int, grant: Grant) -> None:
    size = os.fstat(source).st_size
    resize(target, size)
    unsynced = 0
    for start, end in _slices(source, size):
        grant.check()
        _copy_range(source, target, start, end)
        grant.report(end, size)
        unsynced += end - start
        if unsynced >= SYNC_BYTES:  # a single sync at the end would take long and look like a stall
            os.fdatasync(target)
            unsynced = 0


def _slices(handle: int, size: int) -> Iterator[tuple[int, int]]:
    for start, end in _extents(handle, size):
        for offset in range(start, end, SLICE_BYTES):
            yield offset, min(offset + SLICE_BYTES, end)


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


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        start += _copy_some(source, target, start, end - start)


def _copy_some(source: int, target: int, offset: int, count: int) -> int:
    """Copy between 1 and ``count`` bytes, in the kernel if it can; return how many."""
    try:
        copied = os.copy_file_range(source, target, count, offset, offset)
    except OSError as error:
        _raise_if_fatal(error)
        copied = 0
    # Some kernels return 0, which means end of file, when they cannot copy.
    return copied or _read_and_write(source, target, offset, count)


def _read_and_write(source: int, target: int, offset: int, count: int) -> int:
    content = os.pread(source, count, offset)
    if not content:
        raise TransientStorageError("The file became shorter while it was copied.")
    return os.pwrite(target, content, offset)


def _raise_if_fatal(error: OSError) -> None:
    if error.errno in FATAL_ERRNOS:
        raise error
