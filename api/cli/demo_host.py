"""What ``cistern demo`` needs of this machine to use a volume, and what it must not leave there."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import which
from typing import Final

_TOOLS: Final = ("mkfs.xfs", "xfs_growfs", "mount", "umount", "losetup")
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
#: Of a file system that is made and mounted to see whether that works: XFS needs 300 MiB.
_PROBE_BYTES: Final = 320 * 2**20


def obstacle(directory: Path) -> str | None:
    """Return what is missing to mount a volume below a directory; None if nothing is."""
    if sys.platform != "linux":
        return "Linux"
    if os.geteuid() != 0:
        return "root"
    if missing := [name for name in _TOOLS if which(name, path=_PATH) is None]:
        return " and ".join(missing)
    image, mount_point = directory / "probe", directory / "probed"
    mount_point.mkdir()
    with image.open("wb") as file:
        file.truncate(_PROBE_BYTES)
    try:
        _run("mkfs.xfs", "-q", image)
        _run("mount", "-o", "loop", image, mount_point)
        _run("umount", mount_point)
    except subprocess.CalledProcessError as error:
        return f"mounts on loop devices ({' '.join(error.stderr.split())})"
    finally:
        image.unlink()
        mount_point.rmdir()
    return None


def clear(directory: Path) -> None:
    """Unmount what a demo that failed has left mounted below a directory, and let go of its devices."""
    root = f"{directory.resolve()}/"
    for path in [*_mounted(root)][::-1]:
        with suppress(subprocess.CalledProcessError):
            _run("umount", "--lazy", path)
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError, subprocess.CalledProcessError):  # it was let go of meanwhile
            if file.read_text().startswith(root):
                _run("losetup", "--detach", f"/dev/{file.parts[3]}")


def _mounted(root: str) -> Iterator[str]:
    """Return what is mounted below a directory, in the order in which it was."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        path = line.split()[4]
        if path.startswith(root):
            yield path


def _run(tool: str, *arguments: str | Path) -> None:
    program = which(tool, path=_PATH) or tool
    subprocess.run([program, *arguments], check=True, capture_output=True, text=True)  # noqa: S603
