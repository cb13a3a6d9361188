"""The file that holds the lock and the fence record of one volume or snapshot.

Lock and record are one file that is never removed. So the fence of a deleted volume is kept, and two processes can
never hold locks on two different files for the same volume.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from domain.storage.context import Fence
from domain.storage.errors import PermanentStorageError, StorageBusy
from domain.storage.file.disk import opened, sync_folder

LOCK_TIMEOUT = 1.0
LOCK_POLL_SECONDS = 0.005
RECORD_BYTES = 64


class FenceRecord:
    """The highest fence of one volume or snapshot, in its open lock file."""

    def __init__(self, handle: int, path: Path) -> None:
        self._handle = handle
        self._path = path

    def read(self) -> Fence | None:
        """Return the highest fence so far, None before the first.

        Raises:
            PermanentStorageError: the record is damaged. It must not be taken for an absent one.
        """
        text = os.pread(self._handle, RECORD_BYTES, 0)
        if not text:
            return None
        try:
            version, epoch = text.split()
            return Fence(int(version), int(epoch))
        except ValueError as error:
            raise PermanentStorageError(f"The fence record {self._path} is damaged.") from error

    def write(self, fence: Fence) -> None:
        """Write the fence in place and sync it; a short write within one disk sector is not torn by a crash."""
        first = os.fstat(self._handle).st_size == 0
        os.pwrite(self._handle, f"{fence.version:020d} {fence.epoch:020d}\n".encode(), 0)
        os.fsync(self._handle)
        if first:
            sync_folder(self._path.parent)


def last_fence(path: Path) -> Fence | None:
    """Read the highest fence without the lock; it may have risen by the time this returns."""
    try:
        with opened(path, os.O_RDONLY) as handle:
            return FenceRecord(handle, path).read()
    except FileNotFoundError:
        return None


@contextmanager
def locked(path: Path) -> Iterator[FenceRecord]:
    """Hold the exclusive lock of a volume or snapshot.

    flock belongs to the open file description. The file is opened anew for every lock, so the lock excludes other
    threads as well as other processes, and the kernel releases it when its process is killed.

    Raises:
        StorageBusy: another holder kept the lock for `LOCK_TIMEOUT` seconds.
    """
    with opened(path, os.O_RDWR | os.O_CREAT) as handle:
        _lock(handle)
        yield FenceRecord(handle, path)


def _lock(handle: int) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StorageBusy from None
            time.sleep(LOCK_POLL_SECONDS)
        else:
            return
