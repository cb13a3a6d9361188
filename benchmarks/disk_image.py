"""A file system of one's own in a file, mounted through a loop device: XFS, which shares blocks, or a small ext4."""

# ruff: noqa: INP001, S603, S607 - no package, and no user's input in these commands

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Kind = Literal["xfs", "ext4"]

_MKFS: dict[Kind, list[str]] = {"xfs": ["mkfs.xfs", "-q"], "ext4": ["mkfs.ext4", "-q", "-m", "0"]}
_PACKAGES: dict[Kind, str] = {"xfs": "xfsprogs", "ext4": "e2fsprogs"}


class NoImage(Exception):
    """There can be no such image here; says why in one sentence."""


@contextmanager
def disk_image(folder: Path, size: int, kind: Kind = "xfs") -> Iterator[Path]:
    """Mount a fresh file system of ``size`` bytes below ``folder``, and be rid of it in the end, whatever happens.

    Raises:
        NoImage: if its mkfs is missing or this process may not mount.
    """
    _require_means(kind)
    image, mounted = folder / f"{kind}.image", folder / kind
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    try:
        _mount(image, mounted, kind)
        try:
            yield mounted
        finally:
            _unmount(mounted)
    finally:
        image.unlink()
        mounted.rmdir()


def _require_means(kind: Kind) -> None:
    program, package = _MKFS[kind][0], _PACKAGES[kind]
    if shutil.which(program) is None:
        raise NoImage(f"{program} is not installed (Debian: apt-get install {package}).")
    if os.geteuid() != 0:
        raise NoImage("Only root may mount an image.")


def _mount(image: Path, mounted: Path, kind: Kind) -> None:
    # The loop device is made by mount, so the kernel detaches it with the unmounting, even a lazy one.
    for command in ([*_MKFS[kind], str(image)], ["mount", "-t", kind, "-o", "loop", str(image), str(mounted)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NoImage(f"{command[0]} failed: {' '.join(done.stderr.split())}")


def _unmount(mounted: Path) -> None:
    if subprocess.run(["umount", str(mounted)], check=False).returncode != 0:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)
