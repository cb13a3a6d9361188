"""Volumes on real loop devices, for tests of a node's host: root on Linux only. Everything is cleaned up."""

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from worker.node.host import filesystems, loop_ioctls, mountinfo
from worker.node.host.loop_devices import LoopDevice, LoopDevices
from worker.node.host.operations import HostOperations

MIB = 1024**2
#: Others in each process: all tests that run on the host at the same time share its loop devices.
VOLUME, OTHER = uuid4(), uuid4()
SIZES = {"ext4": 64 * MIB, "xfs": 320 * MIB, "btrfs": 192 * MIB}
MKFS = {"ext4": ("-q", "-F"), "xfs": ("-q",), "btrfs": ("-q",)}
ROOT = Path(__file__).parents[2]
#: The number of the system call open_tree, which is the same on all architectures, and two constants of Linux.
_OPEN_TREE, _OPEN_TREE_CLONE, _AT_FDCWD = 428, 1, -100


def require_loop_devices() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root on Linux")
    try:
        loop_ioctls.free_number()
    except OSError as error:
        pytest.skip(f"needs loop devices: {error}")


def require_tools(*names: str) -> None:
    missing = [name for name in names if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def volume_file(directory: Path, filesystem: str | None, name: str = "data") -> Path:
    """A sparse file with a file system."""
    file = directory / name
    file.touch()
    os.truncate(file, SIZES[filesystem or "ext4"])
    if filesystem:
        require_tools(f"mkfs.{filesystem}")
        subprocess.run([f"mkfs.{filesystem}", *MKFS[filesystem], str(file)], check=True, capture_output=True)
    return file


def enlarge(file: Path, size: int) -> int:
    os.truncate(file, file.stat().st_size + size)
    return file.stat().st_size


def cleaned_up(directory: Path) -> None:
    """Thaw and unmount everything below the directory, and detach the devices of files in it."""
    devices = devices_in(directory)
    paths = {mount.mount_point for device in devices for mount in mountinfo.read().of_device(device.path)}
    paths |= {mount.mount_point for mount in mounts_below(directory)}
    for path in sorted(paths, key=len, reverse=True):
        with suppress(Exception):
            filesystems.thaw(Path(path))
        while mountinfo.read().at(path):
            subprocess.run(["umount", "-l", path], check=True)
    for device in devices:
        LoopDevices().release(device)


def devices_in(directory: Path) -> list[LoopDevice]:
    """The devices of files in a directory, also of deleted ones."""
    return [device for device in LoopDevices().all() if str(directory) in backing_file(device.path)]


def backing_file(device: str) -> str:
    with suppress(OSError):
        return Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text()
    return ""


def devices_of(file: Path) -> list[str]:
    return [device.path for device in LoopDevices().of_file(file)]


def mounted_at(directory: Path) -> list[mountinfo.Mount]:
    return [mount for mount in mountinfo.read().mounts if mount.mount_point == str(directory)]


def mounts_below(directory: Path) -> list[mountinfo.Mount]:
    return [mount for mount in mountinfo.read().mounts if mount.mount_point.startswith(f"{directory}/")]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory; whatever is mounted in it or attached from it is gone after the test."""
    require_loop_devices()
    try:
        yield tmp_path
    finally:
        cleaned_up(tmp_path)
    deadline = time.monotonic() + 5
    while (left := devices_in(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.02)  # the end of a guard or writer closes its last file
    assert left == []
    assert mounts_below(tmp_path) == []


@pytest.fixture
def host(place: Path) -> HostOperations:
    return HostOperations(place / "mounts")


def filesystem_size(host: HostOperations) -> int | None:
    """Return how large the mounted file system of the volume believes its device to be, in bytes."""
    path = host.mounted_path(VOLUME)
    mount = mountinfo.read().at(str(path))
    assert mount is not None
    return filesystems.mounted_size(path, Path(mount.source), mount.filesystem)


@contextmanager
def mounted_elsewhere(path: Path) -> Iterator[None]:
    """Keep a copy of one mount in a namespace of its own. A container has copies of all mounts, also of other tests."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    if handle < 0:
        raise OSError(ctypes.get_errno(), "open_tree", str(path))
    try:
        yield
    finally:
        os.close(handle)
