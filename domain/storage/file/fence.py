"""The order in which attempts may publish on one volume, and the file that keeps it.

Lock and record are one file that is never removed, so that a deleted volume's fence is remembered and no
two processes can ever hold locks on two different files for the same volume.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from domain.storage.context import Fence
from domain.storage.errors import FenceRefused, PermanentStorageError, StorageBusy
from domain.storage.file.disk import opened, sync_folder

LOCK_TIMEOUT = 1.0
LOCK_POLL_SECONDS = 0.005
RECORD_LENGTH = 64


def refuse_stale(last: Fence | None, fence: Fence) -> None:
    """Raise `FenceRefused` if an attempt with a higher fence has published; an equal one may go on."""
    if last is not None and fence < last:
        raise FenceRefused(f"Attempt {tuple(fence)} comes too late: {tuple(last)} has already published.")


class FenceRecord:
    """The highest fence of one volume, as long as its lock is held."""

    def __init__(self, handle: int, path: Path) -> None:
        self._handle = handle
        self._path = path

    def read(self) -> Fence | None:
        """Return the highest fence so far, None before the first."""
        text = os.pread(self._handle, RECORD_LENGTH, 0)
        if not text:
            return None
        try:
            version, epoch = text.split()
            return Fence(int(version), int(epoch))
        except ValueError as error:
            raise PermanentStorageError(f"The fence record {self._path} is damaged.") from error

    def write(self, fence: Fence) -> None:
        """Write the fence down for good, in place: one short write in one sector is not torn by a crash."""
        first = os.fstat(self._handle).st_size == 0
        os.pwrite(self._handle, f"{fence.version:020d} {fence.epoch:020d}\n".encode(), 0)
        os.fsync(self._handle)
        if first:
            sync_folder(self._path.parent)


def last_fence(path: Path) -> Fence | None:
    """Look at the highest fence without holding the lock; it may have risen by the time this returns."""
    try:
        with opened(path, os.O_RDONLY) as handle:
            return FenceRecord(handle, path).read()
    except FileNotFoundError:
        return None


@contextmanager
def locked(path: Path) -> Iterator[FenceRecord]:
    """Hold the volume's lock; raise `StorageBusy` if somebody else does for longer than `PATIENCE`.

    flock belongs to the open file, so a freshly opened one keeps threads apart as well as processes, and
    the kernel lets go of it when its process is killed.
    """
    with opened(path, os.O_RDWR | os.O_CREAT) as handle:
        _lock(handle)
        yield FenceRecord(handle, path)


def _lock(handle: int) -> None:
    ends = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= ends:
                raise StorageBusy from None
            time.sleep(LOCK_POLL_SECONDS)
        else:
            return
