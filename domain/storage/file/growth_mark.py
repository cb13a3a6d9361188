"""A mark on the file of a volume while its ext4 is being grown, by a worker or by the node that is about to mount it.

What e2fsck finds in a marked file is the doing of a growth that was interrupted, so that it may correct all of it.
Without the mark it corrects what is safe, and the rest is left to a person.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_ATTRIBUTE: Final = "user.cistern.growing"


def is_marked(handle: int) -> bool:
    """Return whether a growth of the file system in an open file has begun and not ended."""
    with suppress(OSError):  # there is no mark, or files have no attributes there
        os.getxattr(handle, _ATTRIBUTE)
        return True
    return False


def repair_option(handle: int) -> str:
    """Return the option by which e2fsck corrects what it may correct."""
    return "-y" if is_marked(handle) else "-p"


@contextmanager
def marked(handle: int) -> Iterator[None]:
    """Mark an open file while the block grows its file system; the mark stays if the block fails or is killed."""
    with suppress(OSError):
        os.setxattr(handle, _ATTRIBUTE, b"")
    os.fsync(handle)  # before anything of the growth is on disk
    yield
    with suppress(OSError):
        os.removexattr(handle, _ATTRIBUTE)
