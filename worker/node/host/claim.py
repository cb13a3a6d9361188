"""Which agent has the volumes below a directory: one process at a time, always of the same node.

The agent of another node would find that none of the volumes is its own, and take them from their holders.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from domain.errors import ConfigurationError

CLAIM_FILE: Final = ".node"
_MAX_BYTES: Final = 1024


@contextmanager
def claimed(base_dir: Path, node: str, installation: str, *, in_use: Callable[[], bool]) -> Iterator[None]:
    """Keep other agents from the directory while the block runs; the kernel ends that with the process.

    Raises:
        ConfigurationError: another agent has the directory, or it has volumes of another node.
    """
    handle = os.open(base_dir / CLAIM_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"another agent has {base_dir}: each on a host needs a CISTERN_NODE_DIR of its own"
            ) from None
        owner, former = f"{node} {installation}", os.pread(handle, _MAX_BYTES, 0).decode(errors="replace")
        if former not in ("", owner) and in_use():
            raise ConfigurationError(_other(base_dir, *former.split(" ", 1), installation=installation))
        os.ftruncate(handle, 0)
        os.pwrite(handle, owner.encode(), 0)
        yield
    finally:
        os.close(handle)


def _other(base_dir: Path, node: str, of: str = "", *, installation: str) -> str:
    if of == installation:
        return f"{base_dir} has volumes of the node {node!r}: set CISTERN_NODE to that, or detach them first"
    return f"{base_dir} has volumes of another installation: set another CISTERN_NODE_DIR, or detach them first"
