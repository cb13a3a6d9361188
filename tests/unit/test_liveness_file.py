"""The liveness file exists when the worker starts; if it cannot be written, the worker does not start."""

import time
from pathlib import Path

import pytest

from domain.errors import ConfigurationError
from worker.heartbeat import LivenessFile


def test_opening_creates_a_fresh_file(tmp_path: Path) -> None:
    LivenessFile.open(tmp_path / "beat")

    assert time.time() - (tmp_path / "beat").stat().st_mtime < 60


def test_opening_keeps_the_file_of_an_earlier_worker(tmp_path: Path) -> None:
    (tmp_path / "beat").write_text("kept")
    LivenessFile.open(tmp_path / "beat")

    assert (tmp_path / "beat").read_text() == "kept"


def test_nothing_is_created_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    LivenessFile.open(None).touch()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["missing/beat", "file/beat", "."])
def test_error_of_an_unwritable_path_has_variable_and_path(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"^CISTERN_HEARTBEAT_FILE: .*directory: '/"):
        LivenessFile.open(tmp_path / path)
