"""A private file system in a file, mounted through a loop device: XFS, which shares blocks, or a small ext4."""

# ruff: noqa: INP001, S603, S607 - not a package, and no user's input in these commands

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
    """The image cannot be created; the message is one sentence with the reason."""


@contextmanager
def disk_image(folder: Path, size: int, kind: Kind = "xfs") -> Iterator[Path]:
    """Mount a new file system of ``size`` bytes below ``folder`` for the duration of the block.

    Raises:
        NoImage: mkfs is missing, or this process may not mount.
    """
    _require_tools(kind)
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


def _require_tools(kind: Kind) -> None:
    program, package = _MKFS[kind][0], _PACKAGES[kind]
    if shutil.which(program) is None:
        raise NoImage(f"{program} is not installed (Debian: apt-get install {package}).")
    if os.geteuid() != 0:
        raise NoImage("Only root may mount an image.")


def _mount(image: Path, mounted: Path, kind: Kind) -> None:
    # mount creates the loop device, so the kernel detaches it on unmount, even on a lazy one.
    for command in ([*_MKFS[kind], str(image)], ["mount", "-t", kind, "-o", "loop", str(image), str(mounted)]):
        completed = subprocess.run(command, capture_output=True, text=True, check=False)
        if completed.returncode != 0:
            raise NoImage(f"{command[0]} failed: {' '.join(completed.stderr.split())}")


def _unmount(mounted: Path) -> None:
    if subprocess.run(["umount", str(mounted)], check=False).returncode != 0:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)
