"""The size of a file system, read from its superblock without mounting it.

Whoever uses a volume writes these bytes: every number in them may be false, and none makes this fail.
"""

import os
import struct
from collections.abc import Callable, Mapping
from typing import Final

from domain.storage.driver import MAX_STORED_SIZE

_EXT4_OFFSET, _EXT4_MAGIC, _EXT4_64BIT = 1024, 0xEF53, 0x80
_XFS_MAGIC: Final = b"XFSB"
_BTRFS_OFFSET, _BTRFS_MAGIC = 64 * 1024, b"_BHRfS_M"
_LENGTH: Final = 1024
#: The largest block size of any of them, as a power of two.
_MAX_BLOCK_BITS: Final = 16


def filesystem_size(handle: int, filesystem: str) -> int | None:
    """Return how many bytes the file system in an open file occupies; None if there is none of this kind."""
    offset, read = _READERS[filesystem]
    superblock = os.pread(handle, _LENGTH, offset)
    size = read(superblock) if len(superblock) == _LENGTH else None
    return size if size is not None and 0 < size <= MAX_STORED_SIZE else None


def _ext4(block: bytes) -> int | None:
    (count,) = struct.unpack_from("<I", block, 0x4)
    (bits,) = struct.unpack_from("<I", block, 0x18)
    (magic,) = struct.unpack_from("<H", block, 0x38)
    (features,) = struct.unpack_from("<I", block, 0x60)
    if magic != _EXT4_MAGIC or bits + 10 > _MAX_BLOCK_BITS:
        return None
    if features & _EXT4_64BIT:
        count += struct.unpack_from("<I", block, 0x150)[0] << 32
    return int(count << (10 + bits))


def _xfs(block: bytes) -> int | None:
    magic, block_size, count = struct.unpack_from(">4sIQ", block)
    return int(block_size * count) if magic == _XFS_MAGIC and block_size <= 1 << _MAX_BLOCK_BITS else None


def _btrfs(block: bytes) -> int | None:
    magic = block[0x40:0x48]
    return int(struct.unpack_from("<Q", block, 0x70)[0]) if magic == _BTRFS_MAGIC else None


_READERS: Final[Mapping[str, tuple[int, Callable[[bytes], int | None]]]] = {
    "ext4": (_EXT4_OFFSET, _ext4),
    "xfs": (0, _xfs),
    "btrfs": (_BTRFS_OFFSET, _btrfs),
}
