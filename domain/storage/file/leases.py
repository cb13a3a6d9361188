"""Leases of the kernel: who else on this host has a file open.

The kernel grants a write lease on a file only if no other process, container or loop device has it open.
While it is held, others' opens wait, and those with O_NONBLOCK fail, which `Folder` repeats. It grants a read lease
only if no process has the file open for writing.

Some file systems know no leases, and a process may set none on others' files without CAP_LEASE. Then nothing is known,
and work goes on. Other hosts are never seen: attachments are what knows of them.
"""

import fcntl
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from domain.storage.context import Grant
from domain.storage.errors import VolumeInUse

#: Seconds until a file counts as in use: shorter reads, such as those that measure it, are waited for.
IN_USE_SECONDS = 2.0
POLL_SECONDS = 0.01


@contextmanager
def held_exclusively(handle: int, path: object, grant: Grant) -> Iterator[None]:
    """Require that no other process has a file open, and let none open it during the block.

    The descriptor must be closed soon afterwards: a process that opens the file waits as long as the block takes.

    Raises:
        VolumeInUse: another process has it open for longer than `IN_USE_SECONDS`.
    """
    deadline = time.monotonic() + IN_USE_SECONDS
    while (granted := _lease(handle, fcntl.F_WRLCK)) is False:
        if time.monotonic() >= deadline:
            raise VolumeInUse(
                f"{path} is open on this host; `losetup -j` and `fuser -v` with this path say by whom. Nothing was"
                " changed."
            )
        grant.check()
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        if granted:
            _release(handle)


def is_open_for_writing(handle: int) -> bool | None:
    """Return whether a file is open for writing anywhere on this host; None if that cannot be known.

    ``handle`` is a descriptor of the file for reading.
    """
    granted = _lease(handle, fcntl.F_RDLCK)
    if granted:
        _release(handle)
    return None if granted is None else not granted


def _lease(handle: int, kind: int) -> bool | None:
    """Set a lease; return whether it was granted, None if that says nothing."""
    try:
        # When the file is opened, the kernel sends this process a signal. The usual one would end the process; this
        # one is ignored, unless something handles it.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, kind)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _release(handle: int) -> None:
    """Release a lease. Closing the descriptor is not enough: a process that was just forked may have it too."""
    with suppress(OSError):  # the kernel has taken it back, after waiting for too long
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
