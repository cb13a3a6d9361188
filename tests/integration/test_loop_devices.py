"""A loop device has the volume's file open, as every mounted volume does: see that the driver takes notice."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from uuid import UUID, uuid4

import pytest

from benchmarks.disk_image import NoImage, disk_image
from domain.storage.context import Fence, Grant
from domain.storage.errors import SnapshotTorn, VolumeInUse
from domain.storage.file import leases
from domain.storage.file.driver import FileDriver
from domain.storage.filesystems import FILESYSTEMS
from tests.integration.host_builders import require_tools
from tests.unit.file_builders import stored_size

MIB = 1024**2
VOLUME, SNAPSHOT = (UUID(f"01890000-0000-7000-8000-00000000000{last}") for last in "12")
OLD, NEW = b"old".ljust(MIB, b"o"), b"new".ljust(MIB, b"n")


def attempt(version: int) -> Grant:
    return Grant(uuid4(), Fence(version, 1), deadline=1.0, clock=lambda: 0.0)


@contextmanager
def loop_device(path: Path, *options: str) -> Iterator[Path]:
    command = ["losetup", "--find", "--show", *options, str(path)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode != 0:
        pytest.skip(f"losetup: {completed.stderr.strip()}")
    device = completed.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture(params=["here", "xfs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on the file system of the tests, and one on XFS, which shares blocks."""
    if request.param == "here":
        yield tmp_path / "volumes"
        return
    try:
        with disk_image(tmp_path, 300 * MIB) as mounted:
            yield mounted / "volumes"
    except NoImage as reason:
        pytest.skip(str(reason))


@pytest.fixture
async def driver(root: Path) -> AsyncIterator[FileDriver]:
    """A driver with a volume of NEW bytes and a snapshot of OLD ones."""
    driver = FileDriver(root, threads=2)
    driver.prepare()
    await driver.create(VOLUME, MIB, attempt(1))
    data(driver).write_bytes(OLD)
    await driver.take_snapshot(VOLUME, SNAPSHOT, attempt(2))
    data(driver).write_bytes(NEW)
    yield driver
    await driver.close()


def data(driver: FileDriver) -> Path:
    return Path(driver.path(VOLUME))


@pytest.mark.parametrize("options", [(), ("--read-only",)])
async def test_volume_on_a_loop_device_is_neither_restored_nor_deleted_until_it_is_detached(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(leases, "IN_USE_SECONDS", 0.05)

    with loop_device(data(driver), *options):
        with pytest.raises(VolumeInUse):
            await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(3))
        with pytest.raises(VolumeInUse):
            await driver.delete(VOLUME, attempt(4))
        assert data(driver).read_bytes() == NEW
        assert list((driver.root / ".trash").iterdir()) == []

    assert await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(5)) == MIB
    assert data(driver).read_bytes() == OLD
    await driver.delete(VOLUME, attempt(6))
    assert not data(driver).exists()


@contextmanager
def mounted(volume: Path, folder: Path, filesystem: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", filesystem, "-o", "loop", str(volume), str(folder)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode != 0:
        pytest.skip(f"mount: {completed.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
async def test_file_system_of_a_new_volume_can_be_mounted_and_ext4_has_grown_when_it_is_mounted_again(
    tmp_path: Path, filesystem: str
) -> None:
    require_tools(f"mkfs.{filesystem}")
    volume_id = uuid4()  # also that of the file system: mkfs.btrfs refuses one that is in use on this host
    driver = FileDriver(tmp_path / "volumes", threads=1)
    driver.prepare()
    volume = Path(driver.path(volume_id))
    await driver.create(volume_id, 320 * MIB, attempt(1), filesystem=filesystem)
    with mounted(volume, tmp_path / "mounted", filesystem) as folder:
        (folder / "kept").write_bytes(NEW)
        before = os.statvfs(folder).f_blocks
        with pytest.raises(VolumeInUse):
            await driver.delete(volume_id, attempt(2))

    await driver.expand(volume_id, 640 * MIB, attempt(3))
    await driver.grow_filesystem(volume_id, filesystem, attempt(4))

    assert stored_size(driver, filesystem, volume_id) == (640 if filesystem == "ext4" else 320) * MIB
    with mounted(volume, tmp_path / "mounted", filesystem) as folder:
        assert (folder / "kept").read_bytes() == NEW
        assert (os.statvfs(folder).f_blocks > 1.9 * before) is (filesystem == "ext4")
    await driver.delete(volume_id, attempt(5))
    await driver.close()


def shares_blocks(driver: FileDriver) -> bool:
    return driver.root.parent.name == "xfs"


async def test_snapshot_of_a_volume_on_a_loop_device_says_what_it_is_and_is_refused_if_it_may_not_be_torn(
    driver: FileDriver,
) -> None:
    shared = shares_blocks(driver)
    with loop_device(data(driver)):
        taken = await driver.take_snapshot(VOLUME, uuid4(), attempt(3))
        assert (taken.size, taken.shared, taken.was_open) == (MIB, shared, True)
        if shared:
            assert await driver.take_snapshot(VOLUME, uuid4(), attempt(3), allow_torn=False) == taken
        else:
            with pytest.raises(SnapshotTorn, match="allow_torn"):
                await driver.take_snapshot(VOLUME, uuid4(), attempt(3), allow_torn=False)

    with loop_device(data(driver), "--read-only"):
        taken = await driver.take_snapshot(VOLUME, uuid4(), attempt(3), allow_torn=False)
    assert (taken.size, taken.shared, taken.was_open) == (MIB, shared, False)


@contextmanager
def written_without_end(device: Path) -> Iterator[None]:
    """Write blocks to a device, each straight through to its file, until the block ends."""
    stopped, begun = Event(), Event()

    def write() -> None:
        with device.open("r+b", buffering=0) as file:
            number = 0
            while not stopped.is_set():
                os.pwrite(file.fileno(), number.to_bytes(4, "big") * 1024, number % 256 * 4096)
                os.fsync(file.fileno())
                number += 1
                begun.set()

    writer = Thread(target=write)
    writer.start()
    try:
        assert begun.wait(10)
        yield
    finally:
        stopped.set()
        writer.join()


async def test_what_a_lost_node_writes_never_reaches_the_volume_once_it_is_isolated(driver: FileDriver) -> None:
    before = data(driver).stat()
    with loop_device(data(driver)) as device:
        with written_without_end(device):
            assert await driver.isolate(VOLUME, attempt(3)) == MIB
            isolated = data(driver).read_bytes()
            async with asyncio.timeout(20):
                while device.read_bytes() == isolated:
                    await asyncio.sleep(0.01)
        assert data(driver).read_bytes() == isolated
        after = data(driver).stat()
        assert (after.st_ino != before.st_ino, after.st_mode) == (True, before.st_mode)

        # The lost node has the old file only, so that nobody is in the way of what follows.
        assert await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(4)) == MIB
        await driver.delete(VOLUME, attempt(5))
