"""The ioctls of loop devices and their structures (linux/loop.h)."""

import fcntl
import os
import struct
from dataclasses import dataclass, replace
from typing import Final

CONTROL: Final = "/dev/loop-control"
MARK_BYTES: Final = 63  # of 64; the last one is NUL

AUTOCLEAR: Final = 4
DIRECT_IO: Final = 16

_BEYOND_ANY_FILE: Final = 2**62

_CLR_FD: Final = 0x4C01
_SET_STATUS64: Final = 0x4C04
_GET_STATUS64: Final = 0x4C05
_SET_CAPACITY: Final = 0x4C07
_CONFIGURE: Final = 0x4C0A
_CTL_GET_FREE: Final = 0x4C82

#: device, inode, rdevice, offset, size limit; number, encryption (2), flags; name, crypt name, key; init (2).
_INFO: Final = struct.Struct("=5Q4I64s64s32s2Q")
#: file descriptor, block size, loop_info64, reserved.
_CONFIG: Final = struct.Struct(f"=2I{_INFO.size}s64x")


@dataclass(frozen=True)
class LoopStatus:
    """A loop device that has a file: which one, what part of it, and the mark set together with it."""

    number: int
    file_device: int
    file_inode: int
    offset: int
    size_limit: int
    flags: int
    mark: str

    def packed(self) -> bytes:
        """Return the structure loop_info64."""
        identity = (0, 0, 0, self.offset, self.size_limit, self.number, 0, 0, self.flags)
        return _INFO.pack(*identity, self.mark.encode()[:MARK_BYTES], b"", b"", 0, 0)


def parse_status(info: bytes) -> LoopStatus:
    """Parse the structure loop_info64."""
    device, inode, _, offset, limit, number, _, _, flags, mark, *_ = _INFO.unpack(info)
    return LoopStatus(number, device, inode, offset, limit, flags, mark.partition(b"\0")[0].decode(errors="replace"))


def free_number() -> int:
    """Return the number of a loop device without a file, which is added if need be. Another process may take it."""
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _CTL_GET_FREE)
    finally:
        os.close(control)


def configure(device: int, file: int, sector: int, mark: str) -> None:
    """Give the device its file, sector size and mark at once. Without direct I/O if the file does not support it."""
    status = LoopStatus(0, 0, 0, 0, 0, DIRECT_IO, mark)
    fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(file, sector, status.packed()))


def get_status(device: int) -> LoopStatus:
    """Return the status of an open loop device; ENXIO if it has no file."""
    return parse_status(fcntl.ioctl(device, _GET_STATUS64, bytes(_INFO.size)))


def clear_autoclear(device: int) -> None:
    """Let the device keep its file after its last close."""
    status = get_status(device)
    fcntl.ioctl(device, _SET_STATUS64, replace(status, flags=status.flags & ~AUTOCLEAR).packed())


def empty(device: int) -> None:
    """Give the device a size of 0: what still has it open can write nothing more."""
    fcntl.ioctl(device, _SET_STATUS64, replace(get_status(device), offset=_BEYOND_ANY_FILE).packed())


def set_capacity(device: int) -> None:
    """Give the device the size that its file has now."""
    fcntl.ioctl(device, _SET_CAPACITY, 0)


def clear(device: int) -> None:
    """Take the file from the device: at once if nothing else has the device open, otherwise at the last close."""
    fcntl.ioctl(device, _CLR_FD, 0)
