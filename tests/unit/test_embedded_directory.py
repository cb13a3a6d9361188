"""The data directory of the embedded servers, and the messages for directories that cannot be used."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from domain.embedded.directory import MAX_SOCKET_DIRECTORY_BYTES, DataDirectory, refuse_impassable
from domain.embedded.servers import find_programs, find_redis_server
from domain.errors import ConfigurationError


def test_missing_directory_is_created_with_its_parents(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "a" / "b")

    directory.claim()
    directory.release()

    assert (tmp_path / "a" / "b").is_dir()


def test_directory_is_claimed_by_one_owner_until_it_is_released(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    first.claim()

    with pytest.raises(ConfigurationError, match=r"another cistern up \(pid \d+\) uses this data directory"):
        second.claim()

    first.release()
    second.claim()
    second.release()


def test_file_at_the_directorys_path_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match=r"^data directory .*/file: not a directory$"):
        DataDirectory(tmp_path / "file").claim()


def test_file_among_the_directorys_parents_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match=r"^data directory .*/file/data: not a directory$"):
        DataDirectory(tmp_path / "file" / "data").claim()


def test_path_that_is_not_writable_is_reported_in_one_line() -> None:
    with pytest.raises(ConfigurationError, match=r"^data directory /proc/cistern: [a-z ]+$"):
        DataDirectory(Path("/proc/cistern")).claim()


def test_sockets_are_in_the_directory_if_its_path_is_short() -> None:
    directory = DataDirectory(Path("/srv/cistern"))

    assert directory.run == Path("/srv/cistern/run")


@pytest.mark.parametrize("name", ["x" * MAX_SOCKET_DIRECTORY_BYTES, "a place, with: %signs & spaces"])
def test_sockets_are_elsewhere_if_the_path_does_not_fit_a_socket_or_a_url(tmp_path: Path, name: str) -> None:
    directory = DataDirectory(tmp_path / name)
    directory.claim()

    directory.make_run()
    elsewhere = directory.run
    directory.release()

    assert tmp_path not in elsewhere.parents
    assert not elsewhere.exists()
    assert not (tmp_path / name / "run").is_symlink()


def test_socket_directory_of_a_killed_owner_is_removed(tmp_path: Path) -> None:
    killed = DataDirectory(tmp_path / ("x" * MAX_SOCKET_DIRECTORY_BYTES))
    killed.claim()
    killed.make_run()
    successor = DataDirectory(killed.path)

    successor.make_run()

    assert not killed.run.exists()
    assert successor.run.is_dir()
    killed.release()


def test_impassable_parent_is_refused_by_name_and_left_unchanged(tmp_path: Path) -> None:
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    tmp_path.chmod(0o755)

    with pytest.raises(ConfigurationError, match="choose another directory with --data-dir"):
        refuse_impassable(closed / "cistern")

    assert closed.stat().st_mode & 0o777 == 0o700
    assert not (closed / "cistern").exists()


def test_missing_programs_are_reported_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)

    with pytest.raises(ConfigurationError, match=r"^no embedded PostgreSQL.*pip install 'cistern\[embedded\]'"):
        find_programs()
    with pytest.raises(ConfigurationError, match=r"^no redis-server.*pip install 'cistern\[embedded\]'"):
        find_redis_server()


def test_system_redis_is_used_if_the_wheel_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: "/opt/valkey-server" if name == "valkey-server" else None)

    assert find_redis_server() == Path("/opt/valkey-server")
