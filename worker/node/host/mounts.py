"""Mounts and bind mounts of volumes, by the tools of util-linux."""

import os
import time
from pathlib import Path
from typing import Final

from worker.node.host import mountinfo, processes
from worker.node.host.calls import ToolFailed, describe, run
from worker.node.host.errors import HostFailed, MountInUse, TargetRefused
from worker.node.host.mountinfo import Mount

MOUNT_SECONDS: Final = 60.0  # it may have a large journal to replay
BUSY_SECONDS: Final = 1.0  # a process that only lists it, or is just ending, has gone by then
POLL_SECONDS: Final = 0.05

#: Clones of an XFS have the same UUID. Trimming is done by schedule, not with each deletion.
OPTIONS: Final = {
    "ext4": "nosuid,nodev,nodiscard",
    "xfs": "nosuid,nodev,nodiscard,nouuid",
    "btrfs": "nosuid,nodev,nodiscard",
}
DIRECTORY_MODE: Final = 0o711
_SAFE: Final = "nosuid,nodev"


class Mounts:
    """The mounts of this process's mount namespace."""

    def share(self, directory: Path) -> None:
        """Make the directory a shared mount of its own, so that containers see what is mounted below it, and its end.

        It must not share with the mount that it is on: whatever is mounted below it would appear there as well.
        """
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        table = mountinfo.read()
        here = table.at(str(directory))
        if here is None:
            _mount("--bind", str(directory), str(directory))
            table = mountinfo.read()
            here = table.at(str(directory))
        if here is None:
            raise HostFailed(f"{directory} has not become a mount point.")
        parent = table.parent(here)
        if here.peer_group is not None and parent and parent.peer_group == here.peer_group:
            _mount("--make-private", str(directory))
            here = None
        if here is None or here.peer_group is None:
            _mount("--make-shared", str(directory))

    def mount(self, device: str, directory: Path, filesystem: str) -> None:
        """Mount a device at a directory, which is made if need be.

        Raises:
            TargetRefused: the directory is not empty, or something else is mounted there.
        """
        here = mountinfo.read().at(str(directory))
        if here is not None:
            if here.source == device and here.root == "/":
                return
            raise TargetRefused(f"{here.source} is mounted at {directory} already.")
        _prepare(directory)
        _mount("-t", filesystem, "-o", OPTIONS[filesystem], device, str(directory))

    def bind(self, source: Path, target: Path, *, read_only: bool) -> None:
        """Show what is mounted at ``source`` at ``target`` as well, which is made if need be.

        Raises:
            TargetRefused: ``target`` is no empty directory, or something else is mounted there.
            HostFailed: nothing is mounted at ``source``.
        """
        table = mountinfo.read()
        volume, here = table.at(str(source)), table.at(str(target))
        if volume is None:
            raise HostFailed(f"Nothing is mounted at {source}.")
        if here is None:
            _prepare(target)
            _mount("--bind", str(source), str(target))
            here = mountinfo.read().at(str(target))
        if here is None or not _same(here, volume):
            raise TargetRefused(f"{here.source if here else 'Nothing'} is mounted at {target}.")
        if here.is_read_only != read_only:  # a bind mount cannot be made read-only at once
            _mount("-o", f"remount,bind,{_SAFE},{'ro' if read_only else 'rw'}", str(target))

    def unmount(self, directory: Path, *, lazy: bool = False) -> None:
        """Remove all mounts at a directory; ``lazy``: also if they are in use, without waiting.

        Raises:
            MountInUse: processes use it.
        """
        deadline = time.monotonic() + BUSY_SECONDS
        while mountinfo.read().at(str(directory)):
            try:
                run("umount", "-n", "-c", *(["-l"] if lazy else []), str(directory), seconds=MOUNT_SECONDS)
            except ToolFailed as error:
                if mountinfo.read().at(str(directory)) is None:
                    return
                if "busy" not in error.words:
                    raise
                if time.monotonic() > deadline:
                    users = ", ".join(processes.using(directory)) or "a process"
                    raise MountInUse(f"{directory} is still in use by {users}.") from None
                time.sleep(POLL_SECONDS)


def resolved(target: Path) -> Path:
    """Return the directory without symbolic links, as the kernel shows it."""
    if not target.is_absolute():
        raise TargetRefused(f"{target} is not an absolute path.")
    return Path("/", os.path.realpath(target).lstrip("/"))  # POSIX lets two slashes at the beginning be


def _same(one: Mount, other: Mount) -> bool:
    return (one.device, one.root) == (other.device, other.root)


def _prepare(directory: Path) -> None:
    """Make the directory, or see that it is empty: a mount would hide what is in it."""
    try:
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        with os.scandir(directory) as entries:
            if next(entries, None) is not None:
                raise TargetRefused(f"{directory} is not empty.")
    except (FileExistsError, NotADirectoryError):
        raise TargetRefused(f"{directory} is not a directory.") from None
    except OSError as error:
        raise TargetRefused(f"{directory} cannot be mounted on: {describe(error)}.") from error


def _mount(*arguments: str) -> None:
    run("mount", "-n", "-c", *arguments, seconds=MOUNT_SECONDS)
