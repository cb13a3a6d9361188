"""A file system that can share blocks, on a machine whose own may not: XFS in a file, mounted through a loop device."""

# ruff: noqa: INP001, S603, S607 - no package, and no user's input in these commands

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoXfs(Exception):
    """There can be no XFS image here; says why in one sentence."""


@contextmanager
def xfs_image(folder: Path, size: int) -> Iterator[Path]:
    """Mount a fresh XFS of ``size`` bytes below ``folder``, and be rid of it in the end, whatever happens.

    Raises:
        NoXfs: if mkfs.xfs is missing or this process may not mount.
    """
    _require_means()
    image, mounted = folder / "xfs.image", folder / "xfs"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    try:
        _mount(image, mounted)
        try:
            yield mounted
        finally:
            _unmount(mounted)
    finally:
        image.unlink()
        mounted.rmdir()


def _require_means() -> None:
    if shutil.which("mkfs.xfs") is None:
        raise NoXfs("mkfs.xfs is not installed (Debian: apt-get install xfsprogs).")
    if os.geteuid() != 0:
        raise NoXfs("Only root may mount an XFS image.")


def _mount(image: Path, mounted: Path) -> None:
    # The loop device is made by mount, so the kernel detaches it with the unmounting, even a lazy one.
    for command in (["mkfs.xfs", "-q", str(image)], ["mount", "-t", "xfs", "-o", "loop", str(image), str(mounted)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoXfs(f"{command[0]} failed: {' '.join(done.stderr.split())}")


def _unmount(mounted: Path) -> None:
    if subprocess.run(["umount", str(mounted)], check=False).returncode != 0:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)
