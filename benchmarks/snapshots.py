"""How much faster a snapshot is where blocks are shared than where they are copied.

    python benchmarks/snapshots.py [--root DIR]

Takes snapshots of a volume that holds 1 GiB of random data with the file driver: the whole operation, with its
fence, its lock and its syncs. Without ``--root`` it makes an XFS in a file and mounts it, which only root may.

How to read it: ``shared`` is what an operator gets on XFS or Btrfs. It hardly depends on the size, so 1 GiB and
1 TiB take about as long, and the new blocks beside it are none. ``copied`` is what one gets anywhere else; it
depends on the disk, and on how much of the volume holds data. The ratio is copied to shared, by their medians.
Through a loop device both are slower than on the bare disk, which makes the ratio a modest one.
"""

# ruff: noqa: INP001, T201 - no package, and it is there to print

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from unittest.mock import patch
from uuid import uuid4

from disk_image import NoImage, disk_image

from domain.storage.context import Fence, Grant
from domain.storage.file.driver import FileDriver

MIB, GIB = 1024**2, 1024**3
ROUNDS = 5


def main() -> None:
    """Measure both ways, and print the ratio."""
    parser = argparse.ArgumentParser(description="Time snapshots of 1 GiB, shared and copied.")
    parser.add_argument("--root", type=Path, help="a folder on the file system to measure; default: an XFS of its own")
    root = parser.parse_args().root
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cistern-bench-", dir=root)))
        try:
            place = folder if root else stack.enter_context(disk_image(folder, 4 * GIB))
        except NoImage as reason:
            sys.exit(f"{reason} Or name a folder with --root.")
        asyncio.run(measure(place / "volumes"))


async def measure(root: Path) -> None:
    """Fill a volume and take snapshots of it, as the file system does it and then without its help."""
    driver, volume = FileDriver(root, threads=1), uuid4()
    await driver.create(volume, GIB, attempt())
    fill(Path(driver.path(volume)))

    async def take() -> tuple[float, int]:
        snapshot, before = uuid4(), free(root)
        begun = time.perf_counter()
        await driver.take_snapshot(volume, snapshot, attempt())
        took, blocks = time.perf_counter() - begun, before - free(root)
        await driver.delete_snapshot(volume, snapshot, attempt())
        return took, blocks

    shared = [await take() for _ in range(ROUNDS)]
    with unhelpful_system():
        copied = [await take() for _ in range(ROUNDS)]
    await driver.close()
    report(shared, copied)


def report(shared: list[tuple[float, int]], copied: list[tuple[float, int]]) -> None:
    """Print medians, spans and new blocks; a ratio only if blocks were shared at all."""
    is_shared = shared[0][1] < GIB // 2
    for name, rounds in (("shared" if is_shared else "kernel", shared), ("copied", copied)):
        times = [took for took, _ in rounds]
        blocks = rounds[0][1]  # later rounds' are blurred: XFS frees what was deleted in its own time
        span = f"{min(times):.4f} to {max(times):.4f}"
        print(f"{name}  1 GiB in {median(times):.4f} s  ({span}, {len(rounds)} rounds)  new blocks {blocks // MIB} MiB")
    if not is_shared:
        print("This file system does not share blocks: the kernel copied in the first line, Python in the second.")
        return
    print(f"ratio   {median(took for took, _ in copied) / median(took for took, _ in shared):.0f}")


def attempt() -> Grant:
    """Make a grant that lasts."""
    return Grant(uuid4(), Fence(1, 1), deadline=float("inf"))


def fill(path: Path) -> None:
    """Write random bytes into all of the file, and have them on the disk before anything is measured."""
    with path.open("r+b") as file:
        file.writelines(os.urandom(MIB) for _ in range(GIB // MIB))
        os.fsync(file)


def free(path: Path) -> int:
    """Tell how many bytes the file system has left."""
    found = os.statvfs(path)
    return found.f_bfree * found.f_frsize


@contextmanager
def unhelpful_system() -> Iterator[None]:
    """Take sharing away, both FICLONE and copy_file_range, which shares unasked on XFS and Btrfs."""
    with patch("fcntl.ioctl", unsupported), patch("os.copy_file_range", unsupported):
        yield


def unsupported(*_: object) -> int:
    """Answer as a file system does that cannot."""
    raise OSError(95, "Operation not supported")


if __name__ == "__main__":
    main()
