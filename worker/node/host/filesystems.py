"""Mounted and unmounted file systems of volumes: use, growth, trimming."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from domain.storage.file.growth_mark import is_marked, marked, repair_option
from domain.storage.file.superblock import filesystem_size
from worker.node.host.calls import ToolFailed, describe, run
from worker.node.host.errors import GrowthRefused, HostFailed

GROW_SECONDS: Final = 600.0
TRIM_SECONDS: Final = 3600.0
SYNC_SECONDS: Final = 60.0

_THAW: Final = 0xC0045878
_SHUTDOWN: Final = 0x8004587D
_WITHOUT_LOG: Final = struct.pack("=I", 2)
_XFS_GEOMETRY: Final = 0x80705864
_BTRFS_DEVICE: Final = 0xD000941E
_FSCK_OK: Final = (0, 1)  # 1: it has corrected something


@dataclass(frozen=True)
class FilesystemUsage:
    """What df shows, in bytes. The numbers of inodes are None if the file system makes them as it needs them."""

    size: int
    used: int
    available: int
    inodes: int | None
    inodes_used: int | None


def usage(mount_path: Path) -> FilesystemUsage:
    """Measure a mounted file system."""
    found = os.statvfs(mount_path)
    return FilesystemUsage(
        size=found.f_blocks * found.f_frsize,
        used=(found.f_blocks - found.f_bfree) * found.f_frsize,
        available=found.f_bavail * found.f_frsize,
        inodes=found.f_files or None,
        inodes_used=found.f_files - found.f_ffree if found.f_files else None,
    )


def ext4_size(device: Path) -> int | None:
    """Return the size in bytes that the ext4 on a device has, mounted or not; None if there is none."""
    with device.open("rb") as file:
        return filesystem_size(file.fileno(), "ext4")


def mounted_size(mount_path: Path, device: Path, filesystem: str) -> int | None:
    """Return the size in bytes that a mounted file system believes its device to have.

    XFS and btrfs are asked: what they have on disk is older. ext4 keeps its superblock in the device's page cache.
    """
    if filesystem == "ext4":
        return ext4_size(device)
    with _opened(mount_path) as handle:
        if filesystem == "xfs":
            answer = fcntl.ioctl(handle, _XFS_GEOMETRY, bytes(112))
            return int(struct.unpack_from("=I", answer)[0] * struct.unpack_from("=Q", answer, 32)[0])
        device_info = bytearray(struct.pack("=Q", 1) + bytes(4088))
        fcntl.ioctl(handle, _BTRFS_DEVICE, device_info)
        return int(struct.unpack_from("=Q", device_info, 32)[0])


def grow_mounted(mount_path: Path, device: Path, filesystem: str) -> None:
    """Grow a mounted file system to the size of its device; succeed if it has that size.

    Raises:
        GrowthRefused: with the words of the tool, such as those about a missing capability (ext4).
    """
    commands = {
        "xfs": ("xfs_growfs", "-d", str(mount_path)),
        "btrfs": ("btrfs", "filesystem", "resize", "max", str(mount_path)),
        "ext4": ("resize2fs", str(device)),
    }
    _grow(*commands[filesystem])


def needs_growth(device: Path, file: int, size: int) -> bool:
    """Return whether an unmounted ext4 is smaller than ``size`` bytes, or an interrupted growth has to be finished."""
    return (ext4_size(device) or 0) < size or is_marked(file)


def grow_unmounted_ext4(device: Path, file: int) -> None:
    """Check an unmounted ext4, as resize2fs demands, and grow it to the size of its device.

    ``file``: an open descriptor of the volume's file, which is marked meanwhile.

    Raises:
        GrowthRefused: the check found what it cannot correct by itself, or the growth failed.
    """
    try:
        run("e2fsck", "-f", repair_option(file), str(device), seconds=GROW_SECONDS)
    except ToolFailed as error:
        if error.status not in _FSCK_OK:
            raise GrowthRefused(error.message) from None
    with marked(file):
        _grow("resize2fs", str(device))


def trim(mount_path: Path) -> None:
    """Give the blocks that the file system does not use back to what is below the volume."""
    run("fstrim", str(mount_path), seconds=TRIM_SECONDS)


def sync(mount_path: Path) -> None:
    """Write what the file system has in memory to the volume."""
    run("sync", "-f", str(mount_path), seconds=SYNC_SECONDS)


def thaw(mount_path: Path) -> bool:
    """Thaw a file system; return whether it was frozen."""
    with _opened(mount_path) as handle:
        return thaw_open(handle, mount_path)


def thaw_open(handle: int, mount_path: Path) -> bool:
    """Thaw the file system of an open directory; return whether it was frozen."""
    try:
        fcntl.ioctl(handle, _THAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise HostFailed(f"{mount_path} cannot be thawed: {describe(error)}.") from error
    return True


def shut_down(mount_path: Path) -> bool:
    """Let all further use of the file system fail, and write nothing more; thaw it. Return whether it can do that.

    ext4 and XFS can; btrfs cannot before Linux 6.19.
    """
    with _opened(mount_path) as handle:
        try:
            fcntl.ioctl(handle, _SHUTDOWN, _WITHOUT_LOG)
            stopped = True
        except OSError as error:
            stopped = error.errno == errno.EIO  # it has been shut down before
        thaw_open(handle, mount_path)  # XFS could not be opened for it any longer
    return stopped


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _grow(*command: str) -> None:
    try:
        run(*command, seconds=GROW_SECONDS)
    except ToolFailed as error:
        raise GrowthRefused(error.message) from None
