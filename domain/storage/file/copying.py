"""One file's bytes into another: shared where the file system can do that, else copied with the holes kept.

A copy is done in slices, so that it can be stopped, is seen to move on, and says how far it is.
"""

import errno
import fcntl
import os
from collections.abc import Iterator

from domain.storage.context import Grant
from domain.storage.errors import TransientStorageError
from domain.storage.file.disk import resize

FICLONE = 0x40049409
SLICE = 8 * 1024 * 1024
SYNC_EVERY = 16 * SLICE

# What would stop any way of copying. All else, whichever errno a file system chose for "not here", leads to
# the plainer way, which will meet the obstacle itself if there is one. Coreutils' cp tells them apart so too.
FALLBACK_ERRNOS = {errno.EIO, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}


def copy(source: int, target: int, grant: Grant) -> int:
    """Make an empty file the likeness of another; returns the size.

    Of a file that is being written to, shared blocks show one moment, copied ones do not.
    """
    if not _share(source, target):
        _copy_data(source, target, grant)
    size = os.fstat(target).st_size
    grant.report(size, size)
    return size


def _share(source: int, target: int) -> bool:
    """Let both files stand on the same blocks until one is written to, if the file system can (XFS, Btrfs)."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        _raise_unless_fallback(error)
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
        if unsynced >= SYNC_EVERY:  # lest the sync at the end be one long silence
            os.fdatasync(target)
            unsynced = 0


def _slices(handle: int, size: int) -> Iterator[tuple[int, int]]:
    for start, end in _extents(handle, size):
        for at in range(start, end, SLICE):
            yield at, min(at + SLICE, end)


def _extents(handle: int, size: int) -> Iterator[tuple[int, int]]:
    """Find the stretches that hold data, in order; where nobody knows of holes, everything is data."""
    end = 0
    while end < size:
        try:
            start = os.lseek(handle, end, os.SEEK_DATA)
            stop = os.lseek(handle, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here on
                return
            _raise_unless_fallback(error)
            start, stop = end, size
        end = min(stop, size)
        if start < end:
            yield start, end


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        start += _copy_some(source, target, start, end - start)


def _copy_some(source: int, target: int, at: int, count: int) -> int:
    """Copy at least one byte, by the kernel if it will; how many, it decides itself."""
    try:
        copied = os.copy_file_range(source, target, count, at, at)
    except OSError as error:
        _raise_unless_fallback(error)
        copied = 0
    # Some kernels answer 0, as if at the end, where they only cannot.
    return copied or _carry(source, target, at, count)


def _carry(source: int, target: int, at: int, count: int) -> int:
    found = os.pread(source, count, at)
    if not found:
        raise TransientStorageError("The file became shorter while it was copied.")
    return os.pwrite(target, found, at)


def _raise_unless_fallback(error: OSError) -> None:
    if error.errno in FALLBACK_ERRNOS:
        raise error
