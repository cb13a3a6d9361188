"""Copies keep every byte and every hole, with and without support by the file system and the kernel."""

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
from domain.storage.file import disk
from domain.storage.file.disk import copy

KIB, MIB = 1024, 1024 * 1024
Report = tuple[int, int]


class RecordingGrant(Grant):
    """A grant that records progress reports and is stopped by the ``stop_after``-th one."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__(uuid4(), Fence(1, 1), deadline=1.0, clock=lambda: 0.0)
        self.reports: list[Report] = []
        self._stop_after = stop_after

    def report(self, done: int, total: int) -> None:
        super().report(done, total)
        self.reports.append((done, total))
        if len(self.reports) == self._stop_after:
            self.stop(StopReason.SHUTDOWN)


def failing(number: int) -> Callable[..., int]:
    def fail(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def unshared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sharing of blocks unsupported, whatever file system the tests run on."""
    monkeypatch.setattr(fcntl, "ioctl", failing(errno.EOPNOTSUPP))


def copied(source: Path, grant: Grant | None = None) -> Path:
    target = source.with_name("target")
    with source.open("rb") as read, target.open("xb") as written:
        size = copy(read.fileno(), written.fileno(), grant or RecordingGrant())
    assert size == target.stat().st_size
    return target


def written(folder: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    """Create a file of ``size`` bytes that contains these pieces, with holes between them."""
    source = folder / "source"
    with source.open("wb") as file:
        file.truncate(size)
        for offset, piece in pieces:
            file.seek(offset)
            file.write(piece)
    return source


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.usefixtures("unshared")
class TestHoles:
    def test_copy_of_a_sparse_gibibyte_allocates_only_its_data(self, tmp_path: Path) -> None:
        source = written(tmp_path, 1024 * MIB, (512 * MIB + 4096, os.urandom(MIB)))

        target = copied(source)

        assert target.stat().st_size == 1024 * MIB
        assert MIB <= allocated(target) < 2 * MIB
        with source.open("rb") as one, target.open("rb") as other:
            for file in (one, other):
                file.seek(512 * MIB)
            assert other.read(2 * MIB) == one.read(2 * MIB)

    @pytest.mark.parametrize("size", [0, 1, 4096, 1024 * MIB])
    def test_copy_of_a_file_without_data_allocates_nothing(self, tmp_path: Path, size: int) -> None:
        grant = RecordingGrant()
        target = copied(written(tmp_path, size), grant)

        assert target.stat().st_size == size
        assert allocated(target) == 0
        assert grant.reports == [(size, size)]

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
    def test_everything_is_copied_if_holes_cannot_be_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        source = written(tmp_path, 3 * MIB, (MIB, b"mine"))
        monkeypatch.setattr(os, "lseek", failing(number))

        assert copied(source).read_bytes() == source.read_bytes()

    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 20_000)), max_size=8))
    @settings(max_examples=25, deadline=None)
    def test_every_pattern_of_data_and_holes_is_preserved(self, pattern: list[tuple[bool, int]]) -> None:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(disk, "COPY_SLICE_BYTES", 5000)
            size, pieces = 0, []
            for filled, length in pattern:
                pieces += [(size, os.urandom(length))] if filled else []
                size += length
            source = written(Path(folder), size, *pieces)

            target = copied(source)

            assert target.read_bytes() == source.read_bytes()
            assert allocated(target) <= allocated(source)


class TestFallbacks:
    @pytest.mark.parametrize(
        "number", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EBADF, errno.EPERM]
    )
    @pytest.mark.parametrize("also", ["", "copy_file_range"])
    def test_unsupported_system_call_falls_back_to_a_simpler_method(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, also: str
    ) -> None:
        source = written(tmp_path, 70_000, (10_000, os.urandom(50_000)))
        monkeypatch.setattr(fcntl, "ioctl", failing(number))
        if also:
            monkeypatch.setattr(os, also, failing(number))

        assert copied(source).read_bytes() == source.read_bytes()

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
    def test_fatal_error_does_not_fall_back_to_another_method(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        monkeypatch.setattr(fcntl, "ioctl", failing(number))
        monkeypatch.setattr(os, "copy_file_range", lambda *_: pytest.fail("tried another method"))

        with pytest.raises(OSError, match=os.strerror(number)):
            copied(written(tmp_path, 4, (0, b"mine")))

    @pytest.mark.usefixtures("unshared")
    def test_copy_continues_when_the_kernel_copies_less_than_requested(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, real = written(tmp_path, 50_000, (0, os.urandom(50_000))), os.copy_file_range
        monkeypatch.setattr(os, "copy_file_range", lambda a, b, count, *at: real(a, b, min(count, 777), *at))

        assert copied(source).read_bytes() == source.read_bytes()

    @pytest.mark.usefixtures("unshared")
    def test_short_reads_and_writes_lose_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source, read, write = written(tmp_path, 50_000, (0, os.urandom(50_000))), os.pread, os.pwrite
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)  # some kernels return 0 when they cannot copy
        monkeypatch.setattr(os, "pread", lambda handle, count, at: read(handle, min(count, 999), at))
        monkeypatch.setattr(os, "pwrite", lambda handle, data, at: write(handle, data[:888], at))

        assert copied(source).read_bytes() == source.read_bytes()

    @pytest.mark.usefixtures("unshared")
    def test_file_truncated_during_the_copy_is_a_transient_error(
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
        monkeypatch.setattr(disk, "COPY_SLICE_BYTES", 64 * KIB)

    def test_progress_is_reported_after_each_slice(self, tmp_path: Path) -> None:
        grant = RecordingGrant()
        copied(written(tmp_path, 200 * KIB, (0, os.urandom(200 * KIB))), grant)

        assert grant.reports == [(done * KIB, 200 * KIB) for done in (64, 128, 192, 200, 200)]

    def test_stopped_copy_ends_within_one_slice(self, tmp_path: Path) -> None:
        grant = RecordingGrant(stop_after=3)
        with pytest.raises(Stopped):
            copied(written(tmp_path, 10 * MIB, (0, os.urandom(10 * MIB))), grant)

        assert grant.reports[-1] == (3 * 64 * KIB, 10 * MIB)

    def test_long_copy_is_synced_at_intervals(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[int] = []
        monkeypatch.setattr(disk, "SYNC_BYTES", 128 * KIB)
        monkeypatch.setattr(os, "fdatasync", synced.append)

        copied(written(tmp_path, 640 * KIB, (0, os.urandom(640 * KIB))))

        assert len(synced) == 5


def test_report_sets_the_byte_counts_and_counts_as_progress() -> None:
    now = [0.0]
    grant = Grant(uuid4(), Fence(1, 1), deadline=5.0, clock=lambda: now[0])
    before = grant.state.copied
    now[0] = 3.0

    grant.report(7, 9)

    assert before is None
    assert (grant.state.copied, grant.state.progressed_at) == ((7, 9), 3.0)
