"""Locks between threads and processes of one host. Both end with the process."""

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import UUID

from worker.node.host.errors import HostBusy

LOCK_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.01
LOCK_FILE: Final = ".lock"

_FLOCK: Final = struct.Struct("hhqqi4x")  # type, whence, start, length, pid


@contextmanager
def volume_locked(base_dir: Path, volume_id: UUID, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Lock a volume on this node: one byte of a file that all volumes share, so that no lock files are left behind."""
    place = volume_id.int % 2**62
    with _opened(base_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT) as handle:
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
        _wait(lambda: fcntl.fcntl(handle, fcntl.F_OFD_SETLK, request), seconds)
        yield


@contextmanager
def file_locked(file: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Lock a volume's file against others who give it a loop device.

    The lock has a descriptor of its own: a loop device keeps the one that it is given, and would keep its lock, too.
    """
    with _opened(file, os.O_RDONLY) as handle:
        _wait(lambda: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB), seconds)
        yield


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def _wait(lock: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            lock()
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise HostBusy("Another operation on this volume is still at work on the node.") from None
            time.sleep(POLL_SECONDS)
        else:
            return
