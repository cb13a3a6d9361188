"""Time of a snapshot with shared blocks, and with copied blocks.

    python benchmarks/snapshots.py [--root DIR]

Takes snapshots of a volume with 1 GiB of random data with the file driver: the whole operation, with fence, lock and
syncs. Without ``--root`` it creates an XFS in a file and mounts it, which requires root.

How to read it: ``shared`` applies to XFS and Btrfs. It hardly depends on the size, and allocates almost no new blocks.
``copied`` applies to all other file systems; it depends on the disk, and on the amount of data in the volume. The ratio
is copied / shared, by their medians. A loop device slows down both, which makes the ratio smaller than on a bare disk.
"""

# ruff: noqa: INP001, T201 - not a package, and its output is printed

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
    """Measure both kinds of snapshot, and print the ratio."""
    parser = argparse.ArgumentParser(description="Time snapshots of 1 GiB, shared and copied.")
    parser.add_argument("--root", type=Path, help="a folder on the file system to measure; default: a private XFS")
    root = parser.parse_args().root
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cistern-bench-", dir=root)))
        try:
            mounted = folder if root else stack.enter_context(disk_image(folder, 4 * GIB))
        except NoImage as reason:
            sys.exit(f"{reason} Or name a folder with --root.")
        asyncio.run(measure(mounted / "volumes"))


async def measure(root: Path) -> None:
    """Fill a volume and take snapshots of it, with the file system's block sharing and then without."""
    driver, volume = FileDriver(root, threads=1), uuid4()
    driver.prepare()
    await driver.create(volume, GIB, new_grant())
    fill(Path(driver.path(volume)))

    async def take() -> tuple[float, int]:
        snapshot, before = uuid4(), free(root)
        begun = time.perf_counter()
        await driver.take_snapshot(volume, snapshot, new_grant())
        seconds, blocks = time.perf_counter() - begun, before - free(root)
        await driver.delete_snapshot(volume, snapshot, new_grant())
        return seconds, blocks

    shared = [await take() for _ in range(ROUNDS)]
    with without_block_sharing():
        copied = [await take() for _ in range(ROUNDS)]
    await driver.close()
    report(shared, copied)


def report(shared: list[tuple[float, int]], copied: list[tuple[float, int]]) -> None:
    """Print medians, ranges and new blocks, and the ratio if the file system shares blocks."""
    is_shared = shared[0][1] < GIB // 2
    for name, rounds in (("shared" if is_shared else "kernel", shared), ("copied", copied)):
        times = [seconds for seconds, _ in rounds]
        blocks = rounds[0][1]  # only the first round is exact: XFS frees deleted blocks later
        span = f"{min(times):.4f} to {max(times):.4f}"
        print(f"{name}  1 GiB in {median(times):.4f} s  ({span}, {len(rounds)} rounds)  new blocks {blocks // MIB} MiB")
    if not is_shared:
        print("This file system does not share blocks: the kernel copied in the first line, Python in the second.")
        return
    print(f"ratio   {median(seconds for seconds, _ in copied) / median(seconds for seconds, _ in shared):.0f}")


def new_grant() -> Grant:
    """Return a grant that never expires."""
    return Grant(uuid4(), Fence(1, 1), deadline=float("inf"))


def fill(path: Path) -> None:
    """Fill the file with random bytes, and sync it before the measurement."""
    with path.open("r+b") as file:
        file.writelines(os.urandom(MIB) for _ in range(GIB // MIB))
        os.fsync(file)


def free(path: Path) -> int:
    """Return the number of free bytes of the file system."""
    status = os.statvfs(path)
    return status.f_bfree * status.f_frsize


@contextmanager
def without_block_sharing() -> Iterator[None]:
    """Disable FICLONE, and copy_file_range, which shares blocks implicitly on XFS and Btrfs."""
    with patch("fcntl.ioctl", unsupported), patch("os.copy_file_range", unsupported):
        yield


def unsupported(*_: object) -> int:
    """Raise the error of a file system without the operation."""
    raise OSError(95, "Operation not supported")


if __name__ == "__main__":
    main()
