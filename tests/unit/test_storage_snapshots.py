"""The bytes of snapshots, restores and clones on disk."""

import errno
import fcntl
import os

import pytest

from domain.storage.errors import VolumeMissing
from domain.storage.file import disk
from domain.storage.file.driver import FileDriver
from tests.unit.file_builders import (
    CLONE,
    MIB,
    NEW,
    OLD,
    SNAPSHOT,
    VOLUME,
    attempt,
    data,
    failing,
    files,
    snapshot,
    snapshot_driver,
)

driver = pytest.fixture(snapshot_driver)


class TestBytes:
    async def test_restore_brings_back_the_snapshots_bytes_at_the_current_size(self, driver: FileDriver) -> None:
        data(driver).write_bytes(NEW)
        await driver.expand(VOLUME, 2 * MIB, attempt(3))
        os.truncate(data(driver), 3 * MIB)  # the current size counts, however it came about

        assert await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(4)) == 3 * MIB
        assert data(driver).read_bytes() == OLD + bytes(2 * MIB)

    async def test_volume_smaller_than_the_snapshot_grows_to_its_size(self, driver: FileDriver) -> None:
        os.truncate(data(driver), 5)

        assert await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(3)) == MIB
        assert data(driver).read_bytes() == OLD

    async def test_later_writes_to_the_volume_do_not_change_the_snapshot(self, driver: FileDriver) -> None:
        with data(driver).open("r+b") as file:
            file.write(b"scribble")

        assert snapshot(driver).read_bytes() == OLD

    async def test_writes_after_a_restore_do_not_change_the_snapshot(self, driver: FileDriver) -> None:
        for version in (3, 4):
            await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(version))
            assert data(driver).read_bytes() == OLD
            data(driver).write_bytes(NEW)

        assert snapshot(driver).read_bytes() == OLD

    async def test_clone_has_the_snapshots_bytes_followed_by_zeros(self, driver: FileDriver) -> None:
        await driver.clone_snapshot(VOLUME, SNAPSHOT, CLONE, 2 * MIB, attempt())

        assert data(driver, CLONE).read_bytes() == OLD + bytes(MIB)

    async def test_clone_snapshot_and_volume_are_independent(self, driver: FileDriver) -> None:
        await driver.clone_snapshot(VOLUME, SNAPSHOT, CLONE, MIB, attempt())
        for path, content in ((data(driver), b"volume"), (data(driver, CLONE), b"clone")):
            with path.open("r+b") as file:
                file.write(content)

        assert data(driver).read_bytes() == b"volume" + OLD[6:]
        assert snapshot(driver).read_bytes() == OLD
        assert data(driver, CLONE).read_bytes() == b"clone" + OLD[5:]

    async def test_second_attempt_does_not_copy_an_existing_target(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await driver.clone_snapshot(VOLUME, SNAPSHOT, CLONE, MIB, attempt())
        for path in (data(driver), data(driver, CLONE)):
            path.write_bytes(NEW)
        monkeypatch.setattr(disk, "copy", lambda *_: pytest.fail("copied again"))

        await driver.take_snapshot(VOLUME, SNAPSHOT, attempt(2, 2))
        await driver.clone_snapshot(VOLUME, SNAPSHOT, CLONE, MIB, attempt(1, 2))

        assert snapshot(driver).read_bytes() == OLD
        assert data(driver, CLONE).read_bytes() == NEW

    async def test_handle_opened_before_a_restore_keeps_the_old_bytes_where_it_cannot_be_seen(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fcntl, "fcntl", failing(errno.EINVAL))
        data(driver).write_bytes(NEW)
        with data(driver).open("r+b") as file:
            await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(3))
            assert file.read() == NEW
            file.write(b"written to the replaced file")

        assert data(driver).read_bytes() == OLD

    async def test_restored_volume_keeps_its_owner_and_mode(self, driver: FileDriver) -> None:
        data(driver).chmod(0o604)
        if os.geteuid() == 0:
            os.chown(data(driver), 1234, 4321)
        before = data(driver).stat()

        await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(3))

        after = data(driver).stat()
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
        assert after.st_ino != before.st_ino

    async def test_restore_succeeds_if_the_owner_cannot_be_set(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "fchown", failing(errno.EPERM))

        assert await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(3)) == MIB

    async def test_restoring_a_volume_whose_data_was_removed_fails(self, driver: FileDriver) -> None:
        data(driver).unlink()

        with pytest.raises(VolumeMissing):
            await driver.restore_snapshot(VOLUME, SNAPSHOT, attempt(3))
        assert files(driver) == {f"{VOLUME}/snapshots/{SNAPSHOT}"}
