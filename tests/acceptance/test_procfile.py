"""The Procfile under Honcho: the release command, then the API and two workers until a signal stops them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from api.cli.stack import free_port
from domain.embedded import EmbeddedServers, temporary_data_dir
from tests.support import keys
from tests.support.databases import run
from tests.support.keys import BEARER
from tests.support.output_search import require_none_in_command_lines, require_none_in_file, with_password

PROJECT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 60.0


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An empty database, a Redis, and the commands of this Python on the PATH."""
    with temporary_data_dir() as data_dir, EmbeddedServers(data_dir, durable=False) as servers:
        yield os.environ | {
            "CISTERN_DATABASE_URL": with_password(servers.database_url),
            "CISTERN_REDIS_URL": with_password(servers.redis_url),
            "CISTERN_DATA_DIR": str(tmp_path),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }


@pytest.mark.slow
def test_procfile_processes_run_and_stop_cleanly(environment: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    with honcho(environment, tmp_path / "release", "start", "release") as release:
        assert release.wait(TIMEOUT_SECONDS) == 0
    run(environment["CISTERN_DATABASE_URL"], keys.INSERT)
    with honcho(environment, tmp_path / "log", "start", "-p", str(port), "-c", "worker=2", "web", "worker") as running:
        until(lambda: (tmp_path / "log").read_text().count("worker.ready") == 2)
        until(lambda: is_ready(port))
        processes = psutil.Process(running.pid).children(recursive=True)
        response = httpx.post(
            f"http://127.0.0.1:{port}/api/v1/volumes",
            json={"name": "one", "size": "1MiB"},
            headers={"Prefer": "wait=30"} | BEARER,
            timeout=TIMEOUT_SECONDS,
        )
        require_none_in_command_lines()
        running.send_signal(signal.SIGTERM)
        running.wait(TIMEOUT_SECONDS)

    assert response.json()["status"] == "succeeded"
    assert psutil.wait_procs(processes, TIMEOUT_SECONDS)[1] == []
    assert (tmp_path / "log").read_text().count("worker.stopped") == 2


@contextmanager
def honcho(environment: dict[str, str], log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "honcho", "-d", str(PROJECT), "-e", os.devnull, *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, cwd=PROJECT, stdout=output, stderr=output)
    try:
        yield process
    except BaseException:
        sys.stderr.write(log.read_text())
        raise
    finally:
        process.terminate()
        process.wait(TIMEOUT_SECONDS)
    require_none_in_file(log)


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").is_success
    except httpx.TransportError:
        return False


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
