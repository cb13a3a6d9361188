"""The first bytes of a file system: what it is, how large it believes its device to be, how small a sector it needs."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: Enough for all: btrfs has its superblock at 64 KiB.
HEAD_BYTES: Final = 64 * 1024 + 4096

_BTRFS_AT: Final = 64 * 1024
_EXT4_AT: Final = 1024
_EXT4_MAGIC: Final = 0xEF53
_EXT4_64BIT: Final = 0x80


@dataclass(frozen=True)
class Superblock:
    """A file system as it is stored. ``min_block`` is the smallest piece that it reads or writes, in bytes."""

    filesystem: str
    size: int
    min_block: int


def parse(head: bytes) -> Superblock | None:
    """Parse the first `HEAD_BYTES` of a file or device; None if they are no file system that a volume may have."""
    readers: tuple[Callable[[bytes], Superblock | None], ...] = (_xfs, _btrfs, _ext4)
    return next((found for reader in readers if (found := reader(head))), None)


def _xfs(head: bytes) -> Superblock | None:
    if not head.startswith(b"XFSB") or len(head) < 104:  # noqa: PLR2004 (the fields that are read)
        return None
    block, blocks = struct.unpack_from(">IQ", head, 4)
    (sector,) = struct.unpack_from(">H", head, 102)
    return Superblock("xfs", block * blocks, sector)


def _btrfs(head: bytes) -> Superblock | None:
    if head[_BTRFS_AT + 0x40 : _BTRFS_AT + 0x48] != b"_BHRfS_M" or len(head) < _BTRFS_AT + 0x100:
        return None
    (size,) = struct.unpack_from("<Q", head, _BTRFS_AT + 0xC9 + 8)  # of this device, not of all devices
    (sector,) = struct.unpack_from("<I", head, _BTRFS_AT + 0x90)
    return Superblock("btrfs", size, sector)


def _ext4(head: bytes) -> Superblock | None:
    if len(head) < 2 * _EXT4_AT or struct.unpack_from("<H", head, _EXT4_AT + 0x38)[0] != _EXT4_MAGIC:
        return None
    (low,) = struct.unpack_from("<I", head, _EXT4_AT + 0x4)
    (log_size,) = struct.unpack_from("<I", head, _EXT4_AT + 0x18)
    (incompatible,) = struct.unpack_from("<I", head, _EXT4_AT + 0x60)
    (high,) = struct.unpack_from("<I", head, _EXT4_AT + 0x150)
    if log_size > 6:  # noqa: PLR2004 (64 KiB, the largest block)
        return None
    block = 1024 << log_size
    return Superblock("ext4", block * (low + (high << 32 if incompatible & _EXT4_64BIT else 0)), block)
