"""The file that shows a worker's heartbeat: there from the start, or the worker does not start."""

import time
from pathlib import Path

import pytest

from domain.errors import ConfigurationError
from worker.liveness import LivenessFile


def test_it_is_fresh_from_the_start(tmp_path: Path) -> None:
    LivenessFile.open(tmp_path / "beat")

    assert time.time() - (tmp_path / "beat").stat().st_mtime < 60


def test_what_an_earlier_worker_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "beat").write_text("kept")
    LivenessFile.open(tmp_path / "beat")

    assert (tmp_path / "beat").read_text() == "kept"


def test_without_a_file_there_is_nothing_to_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    LivenessFile.open(None).touch()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["missing/beat", "file/beat", "."])
def test_a_place_that_cannot_be_written_is_named_with_the_variable(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"^CISTERN_HEARTBEAT_FILE: .*directory: '/"):
        LivenessFile.open(tmp_path / place)
