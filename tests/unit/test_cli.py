"""The command line: errors are reported in one line."""

import importlib.metadata
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from api.cli.app import main
from api.cli.stack import free_port
from api.http_protocol import LimitedHttpProtocol
from domain.errors import DatabaseUnavailable

Cistern = Callable[..., tuple[int, str]]


@pytest.fixture
def empty_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "REDIS_URL", "DATA_DIR", "BACKENDS"):
        monkeypatch.delenv(f"CISTERN_{name}", raising=False)
    return tmp_path


@pytest.fixture
def cistern(empty_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cistern:
    """Run a command in an empty directory; returns its exit status, and its output on stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cistern", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    return run


def test_version_is_that_of_the_package(cistern: Cistern, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.3" if name == "cistern" else "")

    assert cistern("--version") == (0, "1.2.3\n")


def test_serve_runs_uvicorn_with_a_limited_graceful_shutdown(cistern: Cistern, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr("uvicorn.run", lambda app, **options: calls.append((app, options)))
    monkeypatch.setattr("api.http_protocol.raise_descriptor_limit", lambda: 1_200)
    monkeypatch.setattr(LimitedHttpProtocol, "max_connections", 0)

    assert cistern("serve", "--host", "0.0.0.0", "--port", "80") == (0, "")
    options = {"host": "0.0.0.0", "port": 80, "access_log": False, "http": LimitedHttpProtocol, "proxy_headers": False}
    assert calls == [("api.main:app", options | {"timeout_graceful_shutdown": 5})]
    assert LimitedHttpProtocol.max_connections == 1_000


def test_work_runs_the_worker(cistern: Cistern, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("worker.main.main", lambda: calls.append("worker"))

    assert cistern("work") == (0, "")
    assert calls == ["worker"]


def test_server_commands_do_not_import_the_client_commands() -> None:
    modules = "{'httpx', 'rich', 'uvicorn', 'arq'}"
    code = f"import sys, api.cli.app; print(sorted({modules} & sys.modules.keys()))"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert imported.stdout == "[]\n"


def test_migrate_without_a_database_names_the_variable(cistern: Cistern) -> None:
    code, output = cistern("migrate")

    assert (code, output) == (1, "cistern: CISTERN_DATABASE_URL must be postgresql://...\n")


def test_migrate_fails_if_the_database_is_unreachable(
    cistern: Cistern, empty_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CISTERN_DATABASE_URL", f"postgresql+asyncpg://postgres@/cistern?host={empty_dir}")

    code, output = cistern("migrate")

    reason = f"{empty_dir}:5432: No such file or directory"
    assert (code, output) == (1, f"cistern: PostgreSQL is not responding: {reason}\n")


def test_migrate_fails_when_its_wait_times_out(
    cistern: Cistern, empty_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CISTERN_DATABASE_URL", f"postgresql+asyncpg://postgres@/cistern?host={empty_dir}")
    waited = []

    async def wait_for_postgresql(url: str, seconds: float) -> None:
        waited.append(seconds)
        raise DatabaseUnavailable

    monkeypatch.setattr("domain.db.migrations.wait_for_postgresql", wait_for_postgresql)

    code, output = cistern("migrate", "--wait", "30")

    assert (code, output, waited) == (1, "cistern: PostgreSQL is not responding.\n", [30])


def test_migrate_rejects_a_negative_wait(cistern: Cistern) -> None:
    code, output = cistern("migrate", "--wait", "-1")

    assert code == 2
    assert "--wait" in output


def test_invalid_setting_is_named_in_one_line(cistern: Cistern, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_MAX_JOBS", "many")

    code, output = cistern("up")

    assert code == 1
    assert re.fullmatch(r"cistern: CISTERN_MAX_JOBS: .+\n", output)


def test_port_in_use_is_detected_before_anything_is_started(cistern: Cistern, empty_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        code, output = cistern("up", "--port", str(port))

    assert code == 1
    assert output == f"cistern: cannot listen on port {port} of 127.0.0.1: address already in use; choose with --port\n"
    assert list(empty_dir.iterdir()) == []


def test_up_rejects_a_foreign_address(cistern: Cistern) -> None:
    code, output = cistern("up", "--host", "192.0.2.1")

    assert code == 1
    assert re.fullmatch(r"cistern: cannot listen on port 8000 of 192\.0\.2\.1: .+\n", output)


def test_file_in_place_of_the_data_directory_is_reported(
    cistern: Cistern, empty_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_dir / "file").touch()
    monkeypatch.setattr("os.geteuid", lambda: 1000)  # another test covers the permissions of parent directories

    code, output = cistern("up", "--data-dir", str(empty_dir / "file"), "--port", str(free_port()))

    assert (code, output) == (1, f"cistern: data directory {empty_dir / 'file'}: not a directory\n")
