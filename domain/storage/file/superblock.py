"""What a file system says of itself in its superblock, which is read without mounting it.

The users of a volume write these bytes: every number in them may be false, and none makes this fail.
"""

import os
import struct
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from domain.storage.driver import MAX_STORED_SIZE

_EXT4_OFFSET, _EXT4_MAGIC, _EXT4_64BIT = 1024, 0xEF53, 0x80
_XFS_MAGIC: Final = b"XFSB"
_BTRFS_OFFSET, _BTRFS_MAGIC = 64 * 1024, b"_BHRfS_M"
_LENGTH: Final = 1024
#: The largest block size of any of them, as a power of two.
_MAX_BLOCK_BITS: Final = 16


class Superblock(NamedTuple):
    """A file system as it is stored."""

    filesystem: str
    #: How many bytes it occupies.
    size: int
    #: The smallest piece that it reads or writes, in bytes.
    min_block: int


def superblock_of(handle: int) -> Superblock | None:
    """Return the superblock in an open file or device; None if there is no file system that a volume may have."""
    return next((found for filesystem in _READERS if (found := _read(handle, filesystem))), None)


def filesystem_size(handle: int, filesystem: str) -> int | None:
    """Return how many bytes the file system in an open file or device occupies; None if there is none of this kind."""
    found = _read(handle, filesystem)
    return None if found is None else found.size


def _read(handle: int, filesystem: str) -> Superblock | None:
    offset, parse = _READERS[filesystem]
    block = os.pread(handle, _LENGTH, offset)
    found = parse(block) if len(block) == _LENGTH else None
    return found if found is not None and 0 < found.size <= MAX_STORED_SIZE else None


def _xfs(block: bytes) -> Superblock | None:
    magic, block_size, count = struct.unpack_from(">4sIQ", block)
    (sector,) = struct.unpack_from(">H", block, 0x66)
    if magic != _XFS_MAGIC or block_size > 1 << _MAX_BLOCK_BITS:
        return None
    return Superblock("xfs", block_size * count, sector)


def _btrfs(block: bytes) -> Superblock | None:
    if block[0x40:0x48] != _BTRFS_MAGIC:
        return None
    (sector,) = struct.unpack_from("<I", block, 0x90)
    (size,) = struct.unpack_from("<Q", block, 0xD1)  # of this device: 0x70 has the sum over all devices
    return Superblock("btrfs", size, sector)


def _ext4(block: bytes) -> Superblock | None:
    (count,) = struct.unpack_from("<I", block, 0x4)
    (bits,) = struct.unpack_from("<I", block, 0x18)
    (magic,) = struct.unpack_from("<H", block, 0x38)
    (features,) = struct.unpack_from("<I", block, 0x60)
    if magic != _EXT4_MAGIC or bits + 10 > _MAX_BLOCK_BITS:
        return None
    if features & _EXT4_64BIT:
        count += struct.unpack_from("<I", block, 0x150)[0] << 32
    return Superblock("ext4", count << (10 + bits), 1 << (10 + bits))


_READERS: Final[Mapping[str, tuple[int, Callable[[bytes], Superblock | None]]]] = {
    "xfs": (0, _xfs),
    "btrfs": (_BTRFS_OFFSET, _btrfs),
    "ext4": (_EXT4_OFFSET, _ext4),
}
