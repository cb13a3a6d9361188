"""Reserves disk space when a volume is created or grown, instead of when it is written to (``allocate=full``).

Blocks are reserved beyond the end of the file first; then the file gets its new length in one step. So it always has
the old length or the new one, and blocks reserved by a killed attempt are used by the next one or released.
"""

import ctypes
import errno
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from domain.storage.context import Grant
from domain.storage.file.disk import resize

_FALLOC_FL_KEEP_SIZE: Final = 1
#: Bytes reserved by one system call; between two of them the attempt can be stopped and records progress.
_SLICE_BYTES: Final = 1 << 30

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def grow_reserved(handle: int, size: int, grant: Grant) -> None:
    """Grow a file to ``size`` bytes with all new blocks reserved, or leave it as it was."""
    current = os.fstat(handle).st_size
    try:
        for start in range(current, size, _SLICE_BYTES):
            grant.check()
            reserve(handle, start, min(_SLICE_BYTES, size - start))
        resize(handle, size)
    except BaseException:
        release_blocks(handle)
        raise


def release_blocks(handle: int) -> None:
    """Release the blocks that are reserved beyond the end of a file."""
    resize(handle, os.fstat(handle).st_size)


def reserve(handle: int, start: int, length: int) -> None:
    """Reserve the blocks of a range, which may lie beyond the end of the file.

    Does not use `os.posix_fallocate`: on a file system without this feature, it writes to every single block.

    Raises:
        OSError: the file system cannot reserve blocks, or is full.
    """
    if _libc is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if _libc.fallocate(handle, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(start), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def require_reserving(folder: Path) -> None:
    """Raise the OSError if the file system cannot reserve blocks; a full file system passes."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            reserve(file.fileno(), 0, 1)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
