"""Where the private servers may live, and what is said when they may not."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from domain.embedded.directory import LONGEST_SOCKET_DIRECTORY, DataDirectory, refuse_closed
from domain.embedded.postgres_server import find_programs
from domain.embedded.redis_server import find_redis_server
from domain.errors import ConfigurationError


def test_a_missing_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "a" / "b")

    directory.claim()
    directory.release()

    assert (tmp_path / "a" / "b").is_dir()


def test_a_directory_belongs_to_one_user_until_it_is_released(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    first.claim()

    with pytest.raises(ConfigurationError, match=r"another cistern up \(pid \d+\) uses this data directory"):
        second.claim()

    first.release()
    second.claim()
    second.release()


def test_a_file_in_the_directorys_place_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match=r"^data directory .*/file: not a directory$"):
        DataDirectory(tmp_path / "file").claim()


def test_a_file_among_the_directorys_parents_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match=r"^data directory .*/file/data: not a directory$"):
        DataDirectory(tmp_path / "file" / "data").claim()


def test_a_place_where_nobody_may_write_is_named_in_one_line() -> None:
    with pytest.raises(ConfigurationError, match=r"^data directory /proc/cistern: [a-z ]+$"):
        DataDirectory(Path("/proc/cistern")).claim()


def test_sockets_live_in_the_directory_when_its_path_is_short() -> None:
    directory = DataDirectory(Path("/srv/cistern"))

    assert directory.run == Path("/srv/cistern/run")


@pytest.mark.parametrize("name", ["x" * LONGEST_SOCKET_DIRECTORY, "a place, with: %signs & spaces"])
def test_sockets_live_elsewhere_when_the_path_does_not_fit_a_socket_or_an_address(tmp_path: Path, name: str) -> None:
    directory = DataDirectory(tmp_path / name)
    directory.claim()

    directory.make_run()
    elsewhere = directory.run
    directory.release()

    assert tmp_path not in elsewhere.parents
    assert not elsewhere.exists()
    assert not (tmp_path / name / "run").is_symlink()


def test_what_a_killed_owner_left_elsewhere_is_removed(tmp_path: Path) -> None:
    killed = DataDirectory(tmp_path / ("x" * LONGEST_SOCKET_DIRECTORY))
    killed.claim()
    killed.make_run()
    successor = DataDirectory(killed.path)

    successor.make_run()

    assert not killed.run.exists()
    assert successor.run.is_dir()
    killed.release()


def test_a_closed_folder_on_the_way_is_refused_by_name_and_left_as_it_is(tmp_path: Path) -> None:
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    tmp_path.chmod(0o755)

    with pytest.raises(ConfigurationError, match="choose another place with --data-dir"):
        refuse_closed(closed / "cistern")

    assert closed.stat().st_mode & 0o777 == 0o700
    assert not (closed / "cistern").exists()


def test_what_to_install_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)

    with pytest.raises(ConfigurationError, match=r"^no private PostgreSQL.*pip install 'cistern\[embedded\]'"):
        find_programs()
    with pytest.raises(ConfigurationError, match=r"^no redis-server.*pip install 'cistern\[embedded\]'"):
        find_redis_server()


def test_without_the_wheel_the_systems_server_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: "/opt/valkey-server" if name == "valkey-server" else None)

    assert find_redis_server() == Path("/opt/valkey-server")
