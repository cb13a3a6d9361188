"""Loop devices of volumes: one for each file, with a mark that says whose it is.

The mark is set together with the file, so there is no moment at which a killed agent leaves a device that it would not
recognise. A device that is being let go of has the flag "autoclear": it loses its file at its last close, and counts
as gone.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from domain.storage.errors import VolumeMissing
from domain.storage.file.superblock import superblock_of
from worker.node.host import loop_ioctls
from worker.node.host.calls import describe
from worker.node.host.errors import AttachmentStale, DeviceInUse, HostFailed, HostUnable, VolumeFileInUse
from worker.node.host.locks import file_locked
from worker.node.host.loop_ioctls import AUTOCLEAR, DIRECT_IO, LoopStatus

ATTACH_TRIES: Final = 20  # another process may take the free device first
MOUNTED_SECONDS: Final = 1.0  # a container that is being started has a copy of all mounts for a moment
GONE_SECONDS: Final = 5.0  # udev opens a device for a moment whenever it changes
POLL_SECONDS: Final = 0.02
SMALL_SECTOR: Final = 512
LARGE_SECTOR: Final = 4096

_SYS_BLOCK: Final = Path("/sys/block")
_DELETED: Final = " (deleted)"
_NO_FILE: Final = (errno.ENXIO, errno.ENODEV)


@dataclass(frozen=True)
class LoopDevice:
    """A loop device that has a file."""

    path: str
    status: LoopStatus

    @property
    def is_leaving(self) -> bool:
        """Whether it loses its file as soon as nothing has it open."""
        return bool(self.status.flags & AUTOCLEAR)

    @property
    def has_direct_io(self) -> bool:
        """Whether it bypasses the page cache of the file system that its file is on."""
        return bool(self.status.flags & DIRECT_IO)

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return int((_SYS_BLOCK / Path(self.path).name / "size").read_text()) * SMALL_SECTOR

    @property
    def file(self) -> str | None:
        """The path of its file as the kernel knows it; None if the file has been deleted.

        The file is not looked at: what it is stored on may not answer.
        """
        with suppress(OSError):
            path = (_SYS_BLOCK / Path(self.path).name / "loop/backing_file").read_text().rstrip("\n")
            return None if path.endswith(_DELETED) else path
        return None


class LoopDevices:
    """The loop devices of this host."""

    def all(self) -> list[LoopDevice]:
        """Return the devices that have a file."""
        bound = (entry.parents[1].name for entry in _SYS_BLOCK.glob("loop*/loop/backing_file"))
        return [device for name in sorted(bound) if (device := self._bound(f"/dev/{name}"))]

    def of_file(self, file: Path) -> list[LoopDevice]:
        """Return the devices of a file, by its identity: the file may have been renamed or deleted since."""
        identity = file.stat()
        return [
            device
            for device in self.all()
            if (device.status.file_device, device.status.file_inode) == (identity.st_dev, identity.st_ino)
        ]

    def marked(self, mark: str) -> LoopDevice | None:
        """Return the device with this mark that is not being let go of."""
        return next((device for device in self.all() if device.status.mark == mark and not device.is_leaving), None)

    def attach(self, file: Path, mark: str) -> LoopDevice:
        """Return the device of the file, with the size that the file has now; give the file one if it has none.

        Raises:
            VolumeFileInUse: a device that is not marked so has the file.
            DeviceInUse: the device was let go of, and a process still has it open.
            AttachmentStale: the device that is marked so has another file.
            VolumeMissing: there is no such file.
            HostUnable: the file cannot be opened, or the host has no loop devices.
        """
        try:
            with file_locked(file):
                device = self._existing(file, mark) or self._configured(file, mark)
        except FileNotFoundError:
            raise VolumeMissing(f"There is no {file} on the node.") from None
        except OSError as error:
            raise HostUnable(f"{file} cannot be attached to a loop device: {describe(error)}.") from error
        self.update_capacity(device)
        return device

    def update_capacity(self, device: LoopDevice) -> int:
        """Give the device the size of its file, which may have grown; return it in bytes."""
        with _opened(device.path, os.O_RDONLY) as handle:
            loop_ioctls.set_capacity(handle)
        return device.size

    def detach(self, device: LoopDevice) -> None:
        """Take the file from the device, unless the device is in use, in whatever mount namespace.

        Raises:
            DeviceInUse: it is mounted after `MOUNTED_SECONDS`, or open after `GONE_SECONDS`. It keeps its file.
        """
        deadline = time.monotonic() + MOUNTED_SECONDS
        while self._is_refused(device):
            if time.monotonic() > deadline:
                raise DeviceInUse(f"{device.path} is still mounted, perhaps in a container.")
            time.sleep(POLL_SECONDS)
        if not self._is_gone(device):
            self._keep(device)
            raise DeviceInUse(f"{device.path} is still open in another process.")

    def release(self, device: LoopDevice) -> bool:
        """Take the file from the device, at its last close if it is in use. Return whether it is gone already."""
        with suppress(OSError), _opened(device.path, os.O_RDONLY) as handle:
            if loop_ioctls.get_status(handle).mark == device.status.mark:
                loop_ioctls.clear(handle)
        return self._bound(device.path) is None

    def is_mounted(self, device: LoopDevice) -> bool:
        """Return whether the device is mounted, in whatever mount namespace, or otherwise open for one user alone."""
        try:
            os.close(os.open(device.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            return error.errno == errno.EBUSY
        return False

    def empty(self, device: LoopDevice) -> bool:
        """Let nothing more reach the file through the device; return whether the kernel does that."""
        try:
            with _opened(device.path, os.O_RDONLY) as handle:
                loop_ioctls.empty(handle)
        except OSError as error:
            return error.errno in _NO_FILE
        return True

    def _existing(self, file: Path, mark: str) -> LoopDevice | None:
        found = self.of_file(file)
        if any(device.status.mark == mark and device.is_leaving for device in found):
            raise DeviceInUse("The node has let go of the volume, but a process still has it open.")
        if any(device.status.mark != mark for device in found):
            raise VolumeFileInUse(f"{file} is used by {' and '.join(device.path for device in found)}.")
        marked = self.marked(mark)
        if marked and not found:
            raise AttachmentStale(f"{marked.path} still has an earlier file of this volume.")
        return marked

    def _configured(self, file: Path, mark: str) -> LoopDevice:
        handle = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            sector = _sector(handle)
            for _ in range(ATTACH_TRIES):
                path = f"/dev/loop{loop_ioctls.free_number()}"
                with _opened(path, os.O_RDWR) as device:
                    try:
                        loop_ioctls.configure(device, handle, sector, mark)
                    except OSError as error:
                        if error.errno != errno.EBUSY:
                            raise
                    else:
                        return LoopDevice(path, loop_ioctls.get_status(device))
        finally:
            os.close(handle)
        raise HostFailed("Other processes take each free loop device first.")

    def _bound(self, path: str) -> LoopDevice | None:
        try:
            with _opened(path, os.O_RDONLY) as handle:
                return LoopDevice(path, loop_ioctls.get_status(handle))
        except OSError:
            return None

    def _is_refused(self, device: LoopDevice) -> bool:
        """Clear the device; return whether it cannot be because it is mounted, in whatever mount namespace."""
        try:
            with _opened(device.path, os.O_RDONLY | os.O_EXCL) as handle:
                if loop_ioctls.get_status(handle).mark == device.status.mark:
                    loop_ioctls.clear(handle)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return True
            if error.errno not in _NO_FILE:
                raise HostFailed(f"{device.path} cannot be detached: {describe(error)}.") from error
        return False

    def _is_gone(self, device: LoopDevice) -> bool:
        deadline = time.monotonic() + GONE_SECONDS
        while (now := self._bound(device.path)) and now.status.mark == device.status.mark:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _keep(self, device: LoopDevice) -> None:
        with suppress(OSError), _opened(device.path, os.O_RDONLY) as handle:
            if loop_ioctls.get_status(handle).mark == device.status.mark:
                loop_ioctls.clear_autoclear(handle)


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    handle = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _sector(file: int) -> int:
    """Return the sector size: 4096 bytes if direct I/O needs it and the content permits it, otherwise 512."""
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise HostUnable("Only a regular file can be attached.")
    if status.st_size % LARGE_SECTOR or _logical_block(status.st_dev) < LARGE_SECTOR:
        return SMALL_SECTOR
    content = superblock_of(file)
    return SMALL_SECTOR if content and content.min_block < LARGE_SECTOR else LARGE_SECTOR


def _logical_block(device: int) -> int:
    """Return the logical block size of the disk below a file system; 512 if it is not a disk."""
    disk = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    for queue in (disk / "queue", disk.parent / "queue"):
        with suppress(OSError, ValueError):
            return int((queue / "logical_block_size").read_text())
    return SMALL_SECTOR
