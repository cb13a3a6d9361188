"""The command line: what it refuses, and that it does so in one line."""

import importlib.metadata
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from api.cli.app import main
from api.cli.demo import free_port
from domain.errors import DatabaseUnavailable

Cistern = Callable[..., tuple[int, str]]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "REDIS_URL", "DATA_DIR", "BACKENDS"):
        monkeypatch.delenv(f"CISTERN_{name}", raising=False)
    return tmp_path


@pytest.fixture
def cistern(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cistern:
    """Run a command there: its exit code, and what it said on stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cistern", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    return run


def test_the_version_is_the_packages(cistern: Cistern, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.3" if name == "cistern" else "")

    assert cistern("version") == (0, "1.2.3\n")


def test_migrate_without_a_database_names_the_variable(cistern: Cistern) -> None:
    code, said = cistern("migrate")

    assert (code, said) == (1, "cistern: CISTERN_DATABASE_URL must be postgresql+asyncpg://...\n")


def test_migrate_says_when_the_database_does_not_answer(
    cistern: Cistern, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CISTERN_DATABASE_URL", f"postgresql+asyncpg://postgres@/cistern?host={elsewhere}")

    code, said = cistern("migrate")

    assert (code, said) == (1, "cistern: PostgreSQL does not answer at the moment.\n")


def test_migrate_that_was_to_wait_says_so_when_the_time_is_over(
    cistern: Cistern, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CISTERN_DATABASE_URL", f"postgresql+asyncpg://postgres@/cistern?host={elsewhere}")
    waited = []

    async def wait_for_postgresql(url: str, seconds: float) -> None:
        waited.append(seconds)
        raise DatabaseUnavailable

    monkeypatch.setattr("api.cli.app.wait_for_postgresql", wait_for_postgresql)

    code, said = cistern("migrate", "--wait", "30")

    assert (code, said, waited) == (1, "cistern: PostgreSQL does not answer at the moment.\n", [30])


def test_migrate_cannot_wait_for_less_than_nothing(cistern: Cistern) -> None:
    code, said = cistern("migrate", "--wait", "-1")

    assert code == 2
    assert "--wait" in said


def test_a_bad_setting_is_named_in_one_line(cistern: Cistern, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_MAX_JOBS", "many")

    code, said = cistern("up")

    assert code == 1
    assert re.fullmatch(r"cistern: CISTERN_MAX_JOBS: .+\n", said)


def test_a_port_in_use_is_found_before_anything_is_started(cistern: Cistern, elsewhere: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        code, said = cistern("up", "--port", str(port))

    assert code == 1
    assert said == f"cistern: cannot listen on port {port} of 127.0.0.1: address already in use; choose with --port\n"
    assert list(elsewhere.iterdir()) == []


def test_an_address_that_is_not_this_machines_is_refused(cistern: Cistern) -> None:
    code, said = cistern("up", "--host", "192.0.2.1")

    assert code == 1
    assert re.fullmatch(r"cistern: cannot listen on port 8000 of 192\.0\.2\.1: .+\n", said)


def test_a_file_in_place_of_the_data_directory_is_named_in_one_line(
    cistern: Cistern, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "file").touch()
    monkeypatch.setattr("os.geteuid", lambda: 1000)  # whether parents are closed is another test's question

    code, said = cistern("up", "--data-dir", str(elsewhere / "file"), "--port", str(free_port()))

    assert (code, said) == (1, f"cistern: data directory {elsewhere / 'file'}: not a directory\n")
