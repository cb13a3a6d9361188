"""The file systems that a volume may have."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from domain.storage.errors import FilesystemFailed

#: The size in bytes that a volume needs at least for each file system: for its journal, its log, or its metadata.
FILESYSTEMS: Final[Mapping[str, int]] = MappingProxyType({"ext4": 16 * 2**20, "xfs": 300 * 2**20, "btrfs": 128 * 2**20})
#: Those that are grown while they are not mounted; the others are grown when they are.
GROWN_OFFLINE: Final = frozenset({"ext4"})


def require_room(filesystem: str, size: int) -> None:
    """Require that a file system is known and fits into so many bytes.

    Raises:
        FilesystemFailed: it is not, or does not.
    """
    if filesystem not in FILESYSTEMS:
        raise FilesystemFailed(f"{filesystem!r} is not among the file systems {', '.join(FILESYSTEMS)}.")
    if size < FILESYSTEMS[filesystem]:
        raise FilesystemFailed(f"{filesystem} needs {FILESYSTEMS[filesystem]} bytes at least; the volume has {size}.")


def refuse_filesystem(filesystem: str | None) -> None:
    """Refuse to make a file system, for a driver that stores no bytes.

    Raises:
        FilesystemFailed: one is asked for.
    """
    if filesystem is not None:
        raise FilesystemFailed(f"The backend cannot make file systems; {filesystem!r} was asked for.")
