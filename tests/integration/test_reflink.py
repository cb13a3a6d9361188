"""On a file system that shares blocks, snapshots of 1 GiB allocate nothing: the disk is too small for a copy."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from itertools import zip_longest
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from benchmarks.disk_image import NoImage, disk_image
from domain.storage.context import Fence, Grant
from domain.storage.driver import Taken
from domain.storage.errors import StorageFull
from domain.storage.file.driver import FileDriver

MIB, GIB = 1024**2, 1024**3
SLACK = 8 * MIB  # XFS metadata for shared blocks
VOLUME, SNAPSHOT, CLONE = (UUID(f"01890000-0000-7000-8000-00000000000{last}") for last in "123")


def attempt(version: int) -> Grant:
    return Grant(uuid4(), Fence(version, 1), deadline=1.0, clock=lambda: 0.0)


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    try:
        with disk_image(tmp_path, GIB + GIB // 2) as mounted:
            yield mounted
    except NoImage as reason:
        pytest.skip(str(reason))


@pytest.fixture
async def driver(xfs: Path) -> AsyncIterator[FileDriver]:
    """A driver on XFS, with a volume of 2 GiB that contains 1 GiB of data."""
    driver = FileDriver(xfs / "volumes", threads=1)
    driver.prepare()
    await driver.create(VOLUME, 2 * GIB, attempt(1))
    fill(Path(driver.path(VOLUME)))
    yield driver
    await driver.close()


def fill(path: Path) -> None:
    """Write 1 GiB in which every mebibyte is different."""
    content = os.urandom(MIB)
    with path.open("r+b") as file:
        file.writelines(number.to_bytes(8) + content[8:] for number in range(1024))
        os.fsync(file)


def overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def pieces(path: Path, length: int = 4 * MIB) -> Iterator[bytes]:
    with path.open("rb") as file:
        for _ in range(GIB // length):
            yield file.read(length)


def stamps(path: Path) -> list[int]:
    with path.open("rb") as file:
        return [int.from_bytes(os.pread(file.fileno(), 8, number * MIB)) for number in range(1025)]


def free(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bfree * status.f_frsize


@pytest.mark.slow
async def test_snapshot_of_a_gibibyte_allocates_no_new_blocks(xfs: Path, driver: FileDriver) -> None:
    data, grant, before = Path(driver.path(VOLUME)), attempt(2), free(xfs)
    assert before < GIB

    assert await driver.take_snapshot(VOLUME, SNAPSHOT, grant) == Taken(2 * GIB, shared=True, was_open=False)

    assert abs(before - free(xfs)) < SLACK
    assert grant.state.copied == (2 * GIB, 2 * GIB)
    snapshot = data.parent / "snapshots" / str(SNAPSHOT)
    assert all(one == other for one, other in zip_longest(pieces(data), pieces(snapshot)))


async def test_restore_and_clone_allocate_no_new_blocks_before_a_write(xfs: Path, driver: FileDriver) -> None:
    data, clone, before = Path(driver.path(VOLUME)), Path(driver.path(CLONE)), free(xfs)
    await driver.take_snapshot(VOLUME, SNAPSHOT, attempt(2))
    overwrite(data, b"overwritten")

    assert await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(3)) == 2 * GIB
    assert await driver.clone_snapshot(VOLUME, SNAPSHOT, CLONE, 3 * GIB, attempt(1)) == 3 * GIB

    assert abs(before - free(xfs)) < SLACK
    assert stamps(data) == stamps(clone) == [*range(1024), 0]
    overwrite(clone, b"the clone's own")
    assert stamps(data) == stamps(data.parent / "snapshots" / str(SNAPSHOT)) == [*range(1024), 0]


async def test_copy_that_runs_out_of_space_leaves_no_files(
    xfs: Path, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = free(xfs)
    monkeypatch.setattr("domain.storage.file.disk._share", lambda *_: False)
    # XFS also shares blocks in copy_file_range.
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)

    with pytest.raises(StorageFull):
        await driver.take_snapshot(VOLUME, SNAPSHOT, attempt(2))

    async with asyncio.timeout(30):  # XFS frees deleted blocks asynchronously
        while before - free(xfs) >= SLACK:
            await asyncio.sleep(0.05)
    assert list(Path(driver.path(VOLUME)).parent.iterdir()) == [Path(driver.path(VOLUME))]
