"""The data directory of the embedded servers, and the messages for directories that cannot be used."""

import importlib.util
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from api.cli.stack import environment_file
from domain.embedded import EmbeddedServers, temporary_data_dir
from domain.embedded.directory import MAX_SOCKET_DIRECTORY_BYTES, TEMPORARY_PREFIX, DataDirectory, refuse_impassable
from domain.embedded.servers import find_programs, find_redis_server
from domain.errors import ConfigurationError
from domain.settings import Settings

OTHER = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")


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


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_directory_that_everybody_may_write_to_is_refused_and_left_as_it_is(tmp_path: Path, below: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o777)

    with pytest.raises(ConfigurationError, match=r"/place: everybody may write to it .mode 0777.; choose another"):
        DataDirectory(place / below).claim()

    assert list(place.iterdir()) == []


@needs_root
@pytest.mark.parametrize("below", ["", "a"])
def test_directory_of_another_user_is_refused(tmp_path: Path, below: str) -> None:
    os.chown(tmp_path, OTHER, OTHER)

    with pytest.raises(ConfigurationError, match=f"it belongs to the user {OTHER}; choose another directory"):
        DataDirectory(tmp_path / below).claim()


@needs_root
def test_sticky_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, OTHER, OTHER)
    tmp_path.chmod(0o1777)

    with pytest.raises(ConfigurationError, match=f"it belongs to the user {OTHER}"):
        DataDirectory(tmp_path / "a").claim()


def test_directory_in_a_sticky_one_is_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    directory = DataDirectory(tmp_path / "a")

    directory.claim()
    directory.release()


@pytest.mark.parametrize("name", ["lock", "redis.pid", "redis.log"])
def test_link_in_place_of_a_file_is_not_followed(tmp_path: Path, name: str) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    with temporary_data_dir() as data:  # unlike `tmp_path`, it can be traversed by the user of the servers
        (data / name).symlink_to(kept)

        with pytest.raises(ConfigurationError, match=f"{name} is a link"), EmbeddedServers(data, postgres=False):
            pass

    assert kept.read_text() == "kept"


@pytest.mark.parametrize("name", ["cistern-mine", "other"])
def test_what_run_points_to_is_kept_unless_cistern_made_it(tmp_path: Path, name: str) -> None:
    kept, data = tmp_path / name, DataDirectory(tmp_path / "data")
    (kept / "inside").mkdir(parents=True)
    kept.chmod(0o700)
    data.claim()
    (data.path / "run").symlink_to(kept)

    data.make_run()
    data.release()

    assert (kept / "inside").exists()
    assert not (data.path / "run").is_symlink()


def test_directory_below_the_temporary_one_that_others_may_enter_is_kept(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "data")
    data.claim()
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX) as kept:
        Path(kept).chmod(0o755)
        (data.path / "run").symlink_to(kept)
        data.release()

        assert Path(kept).exists()


def test_file_with_the_environment_replaces_a_link_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    kept, settings = tmp_path / "kept", Settings(data_dir=tmp_path, database_url="postgresql+asyncpg://:s3cret@/x")
    kept.write_text("kept")
    (tmp_path / "env").symlink_to(kept)
    with environment_file(settings):
        assert "s3cret" in (tmp_path / "env").read_text()
        assert (tmp_path / "env").lstat().st_mode == stat.S_IFREG | 0o600

    assert kept.read_text() == "kept"


def test_file_with_the_environment_that_comes_back_at_once_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    unlink = Path.unlink

    def comes_back(path: Path, *, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        path.symlink_to(kept)

    monkeypatch.setattr(Path, "unlink", comes_back)
    with pytest.raises(FileExistsError), environment_file(Settings(data_dir=tmp_path)):
        pass

    assert kept.read_text() == "kept"
