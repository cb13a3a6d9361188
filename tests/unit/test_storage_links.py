"""What the file driver does where somebody else has put a link, a FIFO, a device or a directory: nothing with it."""

import asyncio
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from domain.storage.context import Grant
from domain.storage.errors import AccessDenied, PermanentStorageError
from domain.storage.file import disk
from domain.storage.file.driver import FileDriver
from tests.unit.file_builders import MIB, SNAPSHOT, VOLUME, attempt, data, perform, snapshot, snapshot_driver

CONSUMER, WORKER = 12345, 12346
SECRET = b"for root only"
PROGRAM = b"#!/bin/sh\nid\n"
driver = pytest.fixture(snapshot_driver)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as several users")
every_publication = pytest.mark.parametrize("operation", ["create", "expand", "take_snapshot", "restore_snapshot"])


@contextmanager
def acting_as(user: int) -> Iterator[None]:
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may pass."""
    path = Path(tempfile.mkdtemp(prefix="cistern-links-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def given_away(place: Path) -> AsyncIterator[FileDriver]:
    """A driver that runs as root, whose volume's directory belongs to the consumer with all that is in it."""
    driver = FileDriver(place / "volumes", threads=2)
    driver.prepare()
    await driver.create(VOLUME, MIB, attempt())
    data(driver).write_bytes(PROGRAM)
    for path in (data(driver), data(driver).parent):
        os.chown(path, CONSUMER, CONSUMER)
    yield driver
    await driver.close()


@pytest.fixture
def secret(place: Path) -> Path:
    path = place / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


def replaced_by_link(path: Path, target: Path) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(target)


def untouched(secret: Path) -> bool:
    status = secret.stat()
    return (secret.read_bytes(), status.st_uid, stat.S_IMODE(status.st_mode)) == (SECRET, 0, 0o600)


@needs_root
class TestConsumerWhoOwnsTheVolumesDirectory:
    async def test_link_in_place_of_the_data_is_not_grown(self, given_away: FileDriver, secret: Path) -> None:
        with acting_as(CONSUMER):
            replaced_by_link(data(given_away), secret)
        with pytest.raises(AccessDenied, match="data is a link"):
            await given_away.expand(VOLUME, 2 * MIB, attempt(2))

        assert untouched(secret)

    async def test_link_in_place_of_the_data_is_not_copied(self, given_away: FileDriver, secret: Path) -> None:
        with acting_as(CONSUMER):
            replaced_by_link(data(given_away), secret)
        with pytest.raises(AccessDenied, match="data is a link"):
            await given_away.take_snapshot(VOLUME, SNAPSHOT, attempt(2))

        assert not snapshot(given_away).exists()

    async def test_restoring_over_a_link_to_a_set_uid_program_makes_none(
        self, given_away: FileDriver, place: Path
    ) -> None:
        program = place / "program"
        program.touch()
        program.chmod(0o4755)
        await given_away.take_snapshot(VOLUME, SNAPSHOT, attempt(2))
        with acting_as(CONSUMER):
            replaced_by_link(data(given_away), program)
        with pytest.raises(AccessDenied, match="data is a link"):
            await given_away.restore_snapshot(VOLUME, SNAPSHOT, attempt(3))

        assert data(given_away).is_symlink()

    async def test_directory_of_roots_is_not_taken_for_that_of_the_snapshots(
        self, given_away: FileDriver, place: Path
    ) -> None:
        (place / "cron.d").mkdir()
        with acting_as(CONSUMER):
            replaced_by_link(data(given_away).parent / "snapshots", place / "cron.d")
        with pytest.raises(AccessDenied, match="snapshots is a link"):
            await given_away.take_snapshot(VOLUME, SNAPSHOT, attempt(2))

        assert list((place / "cron.d").iterdir()) == []

    async def test_link_put_in_place_of_a_draft_changes_no_owner_and_no_mode(
        self, given_away: FileDriver, secret: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await given_away.take_snapshot(VOLUME, SNAPSHOT, attempt(2))
        data(given_away).chmod(0o666)
        copy = disk.copy

        def swapped(source: int, target: int, grant: Grant) -> int:
            size = copy(source, target, grant)
            with acting_as(CONSUMER):
                replaced_by_link(data(given_away).with_name("data.3-1.tmp"), secret)
            return size

        monkeypatch.setattr(disk, "copy", swapped)
        with pytest.raises(AccessDenied, match="was replaced while it was written"):
            await given_away.restore_snapshot(VOLUME, SNAPSHOT, attempt(3))

        assert untouched(secret)
        assert data(given_away).read_bytes() == PROGRAM

    async def test_set_uid_bit_does_not_survive_a_restore(self, given_away: FileDriver) -> None:
        await given_away.take_snapshot(VOLUME, SNAPSHOT, attempt(2))
        data(given_away).chmod(0o4755)
        await given_away.restore_snapshot(VOLUME, SNAPSHOT, attempt(3))

        assert data(given_away).stat().st_mode == stat.S_IFREG | 0o755
        assert data(given_away).stat().st_uid == CONSUMER


@needs_root
async def test_consumers_mode_does_not_come_with_the_workers_owner(place: Path) -> None:
    """A worker that is not root cannot give the restored file to the consumer."""
    os.chown(place, WORKER, WORKER)
    with acting_as(WORKER):
        driver = FileDriver(place / "volumes", threads=1)
        driver.prepare()
        await driver.create(VOLUME, MIB, attempt())
    os.chown(data(driver), CONSUMER, -1)
    data(driver).chmod(0o664)
    with acting_as(CONSUMER):
        data(driver).write_bytes(PROGRAM)
    with acting_as(WORKER):
        await driver.take_snapshot(VOLUME, SNAPSHOT, attempt(2))
    data(driver).chmod(0o4777)
    with acting_as(WORKER):
        await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(3))
        await driver.close()

    status = data(driver).stat()
    assert status.st_uid == WORKER
    assert status.st_mode & 0o7007 == 0


def make_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root can make a device")


every_kind = pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, "a FIFO"), (make_device, "a device"), (Path.mkdir, "a directory"), (make_link, "a link")],
    ids=["fifo", "device", "directory", "link"],
)


@every_kind
class TestOtherKindsOfFiles:
    @every_publication
    async def test_one_in_place_of_the_data_is_a_permanent_error_at_once(
        self, driver: FileDriver, make: Callable[[Path], None], kind: str, operation: str
    ) -> None:
        data(driver).unlink()
        make(data(driver))
        snapshot(driver).rename(snapshot(driver, uuid4())) if operation == "take_snapshot" else None

        async with asyncio.timeout(5):
            with pytest.raises(AccessDenied, match=f"/data is {kind},"):
                await perform(driver, operation, attempt(3))
            with pytest.raises(AccessDenied, match=f"/data is {kind},"):
                await driver.seal(VOLUME, attempt(3))
            assert await driver.measure([VOLUME]) == {}
            with pytest.raises(AccessDenied, match=f"/data is {kind},"):
                await driver.stat(VOLUME, ())

    async def test_one_in_place_of_a_snapshot_is_neither_restored_nor_cloned(
        self, driver: FileDriver, make: Callable[[Path], None], kind: str
    ) -> None:
        snapshot(driver).unlink()
        make(snapshot(driver))
        async with asyncio.timeout(5):
            for operation in ("restore_snapshot", "clone_snapshot", "seal_snapshot"):
                with pytest.raises(AccessDenied, match=f"{SNAPSHOT} is {kind},"):
                    await perform(driver, operation, attempt(3))

    async def test_one_in_place_of_a_fence_record_is_an_error_of_its_volume(
        self, driver: FileDriver, make: Callable[[Path], None], kind: str
    ) -> None:
        record = driver.root / ".fences" / str(VOLUME)
        record.unlink()
        make(record)
        other = uuid4()
        async with asyncio.timeout(5):
            for operation in ("expand", "delete", "seal"):
                with pytest.raises(AccessDenied, match=f"{VOLUME} is {kind},"):
                    await perform(driver, operation, attempt(3))
            assert await driver.create(other, MIB, attempt()) == MIB
            assert other not in await driver.old_fences(1)

    async def test_one_in_a_volumes_directory_is_deleted_with_the_volume(
        self, driver: FileDriver, make: Callable[[Path], None], kind: str
    ) -> None:
        make(data(driver).with_name(kind.replace(" ", "-")))
        await driver.delete(VOLUME, attempt(3))

        assert not data(driver).parent.exists()
        assert list((driver.root / ".trash").iterdir()) == []


async def test_volume_directory_that_is_a_link_is_deleted_and_its_target_kept(
    driver: FileDriver, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    data(driver).parent.rename(elsewhere)
    data(driver).parent.symlink_to(elsewhere)
    with pytest.raises(AccessDenied, match=f"{VOLUME} is a link"):
        await driver.expand(VOLUME, 2 * MIB, attempt(3))
    await driver.delete(VOLUME, attempt(4))

    assert not data(driver).parent.is_symlink()
    assert list((driver.root / ".trash").iterdir()) == []
    assert (elsewhere / "data").stat().st_size == MIB
    assert (elsewhere / "snapshots" / str(SNAPSHOT)).exists()


async def test_link_in_the_trash_is_removed_and_its_target_kept(driver: FileDriver, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (driver.root / ".trash" / f"{VOLUME}.1-1").symlink_to(tmp_path / "kept")
    stored = await driver.stat(VOLUME, ())
    await driver.sweep(VOLUME, stored.leftovers)

    assert list((driver.root / ".trash").iterdir()) == []
    assert (tmp_path / "kept" / "file").exists()


@pytest.mark.parametrize("directory", [".trash", ".fences"])
async def test_link_in_place_of_a_directory_of_the_root_is_refused(
    driver: FileDriver, tmp_path: Path, directory: str
) -> None:
    (driver.root / directory).rename(tmp_path / "elsewhere")
    (driver.root / directory).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(AccessDenied, match=f"{directory} is a link"):
        await driver.delete(VOLUME, attempt(3))
    with pytest.raises(AccessDenied, match=f"{directory} is a link"):
        FileDriver(driver.root, threads=1).prepare()
    assert data(driver).exists()


@pytest.mark.parametrize("record", [f"{2**60} 1\n", f"1 {2**63}\n", "-5 1\n", f"{1:020d} {1:020d}", "1_0 1\n"])
async def test_absurd_fence_record_is_a_permanent_error_of_its_volume(driver: FileDriver, record: str) -> None:
    (driver.root / ".fences" / str(VOLUME)).write_text(record)
    for operation in ("expand", "seal", "delete"):
        with pytest.raises(PermanentStorageError, match=f"The fence record .*{VOLUME} is damaged"):
            await perform(driver, operation, attempt(3))

    assert await driver.create(uuid4(), MIB, attempt()) == MIB


async def test_descriptors_are_closed_after_work_that_succeeds_and_after_work_that_fails(driver: FileDriver) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = count()
    for number in range(20):
        volume, taken = uuid4(), uuid4()
        await driver.create(volume, MIB, attempt())
        await driver.take_snapshot(volume, taken, attempt())
        await driver.restore_snapshot(volume, taken, attempt(2))
        await driver.stat(volume, ())
        if number % 2:
            data(driver, volume).unlink()
            data(driver, volume).symlink_to("/dev/zero")
            for change in (driver.expand(volume, MIB, attempt(3)), driver.restore_snapshot(volume, taken, attempt(3))):
                with pytest.raises(AccessDenied):
                    await change
        await driver.delete(volume, attempt(4))

    assert count() == before
