"""Every byte and every hole of a file in another one, on systems that help and on systems that do not."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.storage.context import Fence, Grant, Stopped, StopReason
from domain.storage.errors import TransientStorageError
from domain.storage.file import copying
from domain.storage.file.copying import copy

KIB, MIB = 1024, 1024 * 1024
Report = tuple[int, int]


class HeardGrant(Grant):
    """A grant that remembers what was reported, and may be stopped by a report."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__(uuid4(), Fence(1, 1), deadline=1.0, clock=lambda: 0.0)
        self.heard: list[Report] = []
        self._stop_after = stop_after

    def report(self, done: int, total: int) -> None:
        super().report(done, total)
        self.heard.append((done, total))
        if len(self.heard) == self._stop_after:
            self.stop(StopReason.SHUTDOWN)


def failing(number: int) -> Callable[..., int]:
    def fail(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def unshared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot share blocks, whatever the tests run on."""
    monkeypatch.setattr(fcntl, "ioctl", failing(errno.EOPNOTSUPP))


def copied(source: Path, grant: Grant | None = None) -> Path:
    target = source.with_name("target")
    with source.open("rb") as read, target.open("xb") as written:
        size = copy(read.fileno(), written.fileno(), grant or HeardGrant())
    assert size == target.stat().st_size
    return target


def written(folder: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    """Make a file of ``size`` bytes that holds these pieces, and holes between them."""
    source = folder / "source"
    with source.open("wb") as file:
        file.truncate(size)
        for at, piece in pieces:
            file.seek(at)
            file.write(piece)
    return source


def room(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.usefixtures("unshared")
class TestHoles:
    def test_a_gibibyte_with_one_mebibyte_of_data_takes_the_room_of_the_data(self, tmp_path: Path) -> None:
        source = written(tmp_path, 1024 * MIB, (512 * MIB + 4096, os.urandom(MIB)))

        target = copied(source)

        assert target.stat().st_size == 1024 * MIB
        assert MIB <= room(target) < 2 * MIB
        with source.open("rb") as one, target.open("rb") as other:
            for file in (one, other):
                file.seek(512 * MIB)
            assert other.read(2 * MIB) == one.read(2 * MIB)

    @pytest.mark.parametrize("size", [0, 1, 4096, 1024 * MIB])
    def test_a_file_without_data_takes_no_room(self, tmp_path: Path, size: int) -> None:
        grant = HeardGrant()
        target = copied(written(tmp_path, size), grant)

        assert target.stat().st_size == size
        assert room(target) == 0
        assert grant.heard == [(size, size)]

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
    def test_where_nobody_knows_of_holes_everything_is_copied(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        source = written(tmp_path, 3 * MIB, (MIB, b"mine"))
        monkeypatch.setattr(os, "lseek", failing(number))

        assert copied(source).read_bytes() == source.read_bytes()

    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 20_000)), max_size=8))
    @settings(max_examples=25, deadline=None)
    def test_no_pattern_of_data_and_holes_is_changed(self, pattern: list[tuple[bool, int]]) -> None:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(copying, "SLICE", 5000)
            size, pieces = 0, []
            for filled, length in pattern:
                pieces += [(size, os.urandom(length))] if filled else []
                size += length
            source = written(Path(folder), size, *pieces)

            target = copied(source)

            assert target.read_bytes() == source.read_bytes()
            assert room(target) <= room(source)


class TestWaysOfCopying:
    @pytest.mark.parametrize(
        "number", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EBADF, errno.EPERM]
    )
    @pytest.mark.parametrize("also", ["", "copy_file_range"])
    def test_what_the_system_cannot_do_is_done_in_a_plainer_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, also: str
    ) -> None:
        source = written(tmp_path, 70_000, (10_000, os.urandom(50_000)))
        monkeypatch.setattr(fcntl, "ioctl", failing(number))
        if also:
            monkeypatch.setattr(os, also, failing(number))

        assert copied(source).read_bytes() == source.read_bytes()

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
    def test_what_no_other_way_would_mend_is_not_tried_in_another_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        monkeypatch.setattr(fcntl, "ioctl", failing(number))
        monkeypatch.setattr(os, "copy_file_range", lambda *_: pytest.fail("tried another way"))

        with pytest.raises(OSError, match=os.strerror(number)):
            copied(written(tmp_path, 4, (0, b"mine")))

    @pytest.mark.usefixtures("unshared")
    def test_a_kernel_that_copies_less_than_asked_is_asked_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, real = written(tmp_path, 50_000, (0, os.urandom(50_000))), os.copy_file_range
        monkeypatch.setattr(os, "copy_file_range", lambda a, b, count, *at: real(a, b, min(count, 777), *at))

        assert copied(source).read_bytes() == source.read_bytes()

    @pytest.mark.usefixtures("unshared")
    def test_short_reads_and_writes_lose_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source, read, write = written(tmp_path, 50_000, (0, os.urandom(50_000))), os.pread, os.pwrite
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)  # as some kernels answer when they cannot
        monkeypatch.setattr(os, "pread", lambda handle, count, at: read(handle, min(count, 999), at))
        monkeypatch.setattr(os, "pwrite", lambda handle, data, at: write(handle, data[:888], at))

        assert copied(source).read_bytes() == source.read_bytes()

    @pytest.mark.usefixtures("unshared")
    def test_a_file_that_becomes_shorter_meanwhile_may_be_copied_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = written(tmp_path, 50_000, (0, os.urandom(50_000)))

        def shorten(*_: object) -> int:
            os.truncate(source, 0)
            return 0

        monkeypatch.setattr(os, "copy_file_range", shorten)

        with pytest.raises(TransientStorageError, match="shorter"):
            copied(source)


@pytest.mark.usefixtures("unshared")
class TestSlices:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(copying, "SLICE", 64 * KIB)

    def test_progress_is_reported_after_each_slice(self, tmp_path: Path) -> None:
        grant = HeardGrant()
        copied(written(tmp_path, 200 * KIB, (0, os.urandom(200 * KIB))), grant)

        assert grant.heard == [(done * KIB, 200 * KIB) for done in (64, 128, 192, 200, 200)]

    def test_a_stopped_copy_ends_within_one_slice(self, tmp_path: Path) -> None:
        grant = HeardGrant(stop_after=3)
        with pytest.raises(Stopped):
            copied(written(tmp_path, 10 * MIB, (0, os.urandom(10 * MIB))), grant)

        assert grant.heard[-1] == (3 * 64 * KIB, 10 * MIB)

    def test_a_long_copy_is_brought_to_the_disk_on_the_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[int] = []
        monkeypatch.setattr(copying, "SYNC_EVERY", 128 * KIB)
        monkeypatch.setattr(os, "fdatasync", synced.append)

        copied(written(tmp_path, 640 * KIB, (0, os.urandom(640 * KIB))))

        assert len(synced) == 5


def test_progress_begins_unknown_and_counts_as_moving_on() -> None:
    now = [0.0]
    grant = Grant(uuid4(), Fence(1, 1), deadline=5.0, clock=lambda: now[0])
    before = grant.lease.copied
    now[0] = 3.0

    grant.report(7, 9)

    assert before is None
    assert (grant.lease.copied, grant.lease.progressed_at) == ((7, 9), 3.0)
