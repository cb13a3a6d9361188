"""A snapshot says whether blocks were shared and whether the volume was open for writing, and may be refused for it."""

import errno
import fcntl
import os
from uuid import uuid4

import pytest

from domain.storage.driver import Taken
from domain.storage.errors import SnapshotTorn
from domain.storage.file import consistency, disk
from domain.storage.file.driver import FileDriver
from tests.unit.file_builders import (
    MIB,
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


@pytest.fixture
def _unshared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_share", lambda *_: False)


@pytest.fixture
def _shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Act as if blocks were shared: copy them all at once."""

    def share(source: int, target: int, *_: object) -> bool:
        os.write(target, os.pread(source, MIB, 0))
        return True

    monkeypatch.setattr(disk, "_share", share)


@pytest.mark.usefixtures("_unshared")
class TestCopied:
    @pytest.mark.parametrize(("mode", "is_open"), [("rb", False), ("r+b", True)])
    async def test_copied_snapshot_says_whether_the_volume_was_open_for_writing(
        self, driver: FileDriver, mode: str, *, is_open: bool
    ) -> None:
        with data(driver).open(mode):
            taken = await driver.take_snapshot(VOLUME, uuid4(), attempt(3))

        assert taken == Taken(MIB, shared=False, was_open=is_open)

    async def test_copy_of_an_open_volume_is_refused_if_it_may_not_be_torn(self, driver: FileDriver) -> None:
        before = files(driver)
        with data(driver).open("r+b"), pytest.raises(SnapshotTorn, match=r"open for writing.*allow_torn"):
            await driver.take_snapshot(VOLUME, uuid4(), attempt(3), allow_torn=False)

        assert files(driver) == before
        taken = await driver.take_snapshot(VOLUME, uuid4(), attempt(3), allow_torn=False)
        assert taken == Taken(MIB, shared=False, was_open=False)

    async def test_refused_copy_reads_nothing(self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(disk, "_copy_data", lambda *_: pytest.fail("copied"))
        with data(driver).open("r+b"), pytest.raises(SnapshotTorn):
            await driver.take_snapshot(VOLUME, uuid4(), attempt(3), allow_torn=False)

    @pytest.mark.parametrize("closes", [False, True])
    async def test_writer_that_comes_during_the_copy_is_noticed(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch, *, closes: bool
    ) -> None:
        copy, before, writers = disk._copy_data, files(driver), []
        os.utime(data(driver), (1, 1))

        def written_meanwhile(*args: int) -> None:
            copy(*args)  # type: ignore[arg-type]
            writer = data(driver).open("r+b", buffering=0)
            writer.write(b"written meanwhile")
            writers.append(writer)
            if closes:
                writer.close()

        monkeypatch.setattr(disk, "_copy_data", written_meanwhile)
        with pytest.raises(SnapshotTorn):
            await driver.take_snapshot(VOLUME, uuid4(), attempt(3), allow_torn=False)
        assert files(driver) == before

        taken = await driver.take_snapshot(VOLUME, uuid4(), attempt(3))
        assert taken == Taken(MIB, shared=False, was_open=True)
        for writer in writers:
            writer.close()

    async def test_where_leases_cannot_be_set_nobody_can_tell_and_nothing_is_refused(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fcntl, "fcntl", failing(errno.EINVAL))
        with data(driver).open("r+b"):
            taken = await driver.take_snapshot(VOLUME, uuid4(), attempt(3), allow_torn=False)

        assert taken == Taken(MIB, shared=False, was_open=None)


@pytest.mark.usefixtures("_shared")
async def test_snapshot_with_shared_blocks_of_an_open_volume_is_never_refused(driver: FileDriver) -> None:
    with data(driver).open("r+b"):
        taken = await driver.take_snapshot(VOLUME, uuid4(), attempt(3), allow_torn=False)

    assert taken == Taken(MIB, shared=True, was_open=True)


class TestRepetition:
    @pytest.mark.usefixtures("_shared")
    async def test_later_attempt_reports_what_the_one_that_took_the_snapshot_found(self, driver: FileDriver) -> None:
        new = uuid4()
        with data(driver).open("r+b"):
            taken = await driver.take_snapshot(VOLUME, new, attempt(3, 1))

        assert taken == Taken(MIB, shared=True, was_open=True)
        assert await driver.take_snapshot(VOLUME, new, attempt(3, 2)) == taken

    async def test_snapshot_of_which_nothing_is_recorded_counts_as_copied(self, driver: FileDriver) -> None:
        for text in (b"", b"shared perhaps", b"\xff"):
            os.setxattr(snapshot(driver), consistency._ATTRIBUTE, text)
            taken = await driver.take_snapshot(VOLUME, SNAPSHOT, attempt(3))
            assert taken == Taken(MIB, shared=False, was_open=None)

    @pytest.mark.usefixtures("_unshared")
    async def test_snapshot_is_taken_where_files_have_no_attributes(
        self, driver: FileDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("setxattr", "getxattr"):
            monkeypatch.setattr(os, name, failing(errno.EOPNOTSUPP))

        taken = await driver.take_snapshot(VOLUME, uuid4(), attempt(3))

        assert taken == Taken(MIB, shared=False, was_open=False)
