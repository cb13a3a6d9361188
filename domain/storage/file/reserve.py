"""Room that is promised when a volume is made or grown, instead of when somebody writes (``allocate=full``).

Blocks are reserved beyond a file's end before it gets its new length in one step: so it has the old length or the new
one, whatever happens in between, and what a killed attempt has reserved is found by the next one, or let go.
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

_KEEP_SIZE: Final = 1
#: So much at once, so that a long reservation can be stopped and is seen to move on.
_SLICE: Final = 1 << 30

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def grow_reserved(handle: int, size: int, grant: Grant) -> None:
    """Make a file ``size`` bytes long with room for everything that it grows by, or leave it as it was."""
    present = os.fstat(handle).st_size
    try:
        for start in range(present, size, _SLICE):
            grant.check()
            reserve(handle, start, min(_SLICE, size - start))
        resize(handle, size)
    except BaseException:
        release_blocks(handle)
        raise


def release_blocks(handle: int) -> None:
    """Give back what is reserved beyond a file's end."""
    resize(handle, os.fstat(handle).st_size)


def reserve(handle: int, start: int, length: int) -> None:
    """Reserve the blocks of a stretch, which need not be within the file; raises OSError.

    Not `os.posix_fallocate`: where a file system cannot do this, that writes to every single block.
    """
    if _libc is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if _libc.fallocate(handle, _KEEP_SIZE, ctypes.c_int64(start), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def require_reserving(folder: Path) -> None:
    """Raise the OSError that says that the file system cannot reserve; that it is full is not that."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            reserve(file.fileno(), 0, 1)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
