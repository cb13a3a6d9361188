"""The key file of `cistern up`, and which key the command line sends."""

import os
from pathlib import Path

import pytest

from api.cli.key_file import authorization, read_key_file, write_key_file
from domain.errors import ConfigurationError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with a key file; the command line looks there."""
    monkeypatch.delenv("CISTERN_KEY", raising=False)
    monkeypatch.setenv("CISTERN_DATA_DIR", str(tmp_path))
    write_key_file(tmp_path, "cst_a")
    return tmp_path


def test_key_file_is_a_header_for_curl_and_for_its_owner_only(data_dir: Path) -> None:
    assert (data_dir / "key").read_text() == "Authorization: Bearer cst_a\n"
    assert (data_dir / "key").stat().st_mode & 0o777 == 0o600
    assert read_key_file(data_dir) == "cst_a"


def test_new_key_replaces_the_file_and_not_what_a_link_leads_to(data_dir: Path) -> None:
    target = data_dir / "target"
    target.write_text("precious")
    (data_dir / "key").unlink()
    (data_dir / "key").symlink_to(target)

    write_key_file(data_dir, "cst_b")

    assert target.read_text() == "precious"
    assert read_key_file(data_dir) == "cst_b"


def test_key_file_that_others_may_read_is_refused(data_dir: Path) -> None:
    (data_dir / "key").chmod(0o640)

    with pytest.raises(ConfigurationError, match="nobody else may read it"):
        read_key_file(data_dir)


def test_link_is_no_key_file(data_dir: Path) -> None:
    (data_dir / "key").rename(data_dir / "other")
    (data_dir / "key").symlink_to(data_dir / "other")

    with pytest.raises(ConfigurationError, match="key: "):
        read_key_file(data_dir)


@needs_root
def test_key_file_of_somebody_else_is_refused(data_dir: Path) -> None:
    os.chown(data_dir / "key", 12345, -1)

    with pytest.raises(ConfigurationError, match="must belong to you"):
        read_key_file(data_dir)


def test_key_of_the_file_is_sent_to_this_machine_only(data_dir: Path) -> None:
    sent = {"Authorization": "Bearer cst_a"}

    for url in ("http://127.0.0.1:8000", "http://localhost", "http://[::1]:1", "HTTP://LOCALHOST:8000"):
        assert authorization(url) == sent, url
    for url in (
        "http://cistern.example.org",
        "http://localhost.example.org",
        "http://127.0.0.1.example.org",
        "http://x@y",
    ):
        assert authorization(url) == {}, url


def test_key_of_the_environment_comes_first(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_KEY", "cst_mine\n")

    for url in ("http://localhost", "https://cistern.example.org"):
        assert authorization(url) == {"Authorization": "Bearer cst_mine"}


def test_without_a_file_no_key_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CISTERN_KEY", raising=False)
    monkeypatch.setenv("CISTERN_DATA_DIR", str(tmp_path))

    assert authorization("http://localhost:8000") == {}
