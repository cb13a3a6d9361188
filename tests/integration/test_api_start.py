"""Start of the server process on real servers: which errors end it, and which do not."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from api.cli.stack import free_port
from domain.embedded import EmbeddedServers
from tests.support.keys import BEARER

ROOT = Path(__file__).parents[2]
NO_REDIS = "redis://127.0.0.1:1/0"
NO_POSTGRESQL = "postgresql+asyncpg://nobody@127.0.0.1:1/nothing"


@contextmanager
def server(tmp_path: Path, port: int, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """Run `uvicorn api.main:app` in its own process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CISTERN_")}
    own = {f"CISTERN_{name}": value for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--log-level", "warning", "--port", str(port), "api.main:app"],
        cwd=tmp_path,
        env=clean | {"PYTHONPATH": str(ROOT), "CISTERN_BACKENDS": '{"memory": "memory:"}'} | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def startup_error(tmp_path: Path, **settings: str) -> str:
    """Run a server that cannot start, check that it logs the reason in one line, and return that line."""
    with server(tmp_path, 0, **settings) as process:
        _, stderr = process.communicate(timeout=30)
    reason, *rest = stderr.splitlines()

    assert process.returncode not in (0, None)
    assert rest == ["ERROR:    Application startup failed. Exiting."]  # logged by uvicorn
    assert reason.startswith("ERROR:    Cistern cannot start: ")
    return reason


def test_unmigrated_database_ends_the_server(servers: EmbeddedServers, tmp_path: Path) -> None:
    url = servers.database_url.replace("/cistern?", "/postgres?")
    reason = startup_error(tmp_path, DATABASE_URL=url, REDIS_URL=servers.redis_url)

    assert "cistern migrate" in reason


def test_unreachable_postgresql_ends_the_server(tmp_path: Path) -> None:
    reason = startup_error(tmp_path, DATABASE_URL=NO_POSTGRESQL, REDIS_URL=NO_REDIS)

    assert "PostgreSQL" in reason


@pytest.mark.parametrize("wrong", ["/no_such_database?", "/cistern?user=nobody_here&"])
def test_rejected_database_login_ends_the_server(servers: EmbeddedServers, tmp_path: Path, wrong: str) -> None:
    url = servers.database_url.replace("/cistern?", wrong)

    assert "does not exist" in startup_error(tmp_path, DATABASE_URL=url, REDIS_URL=NO_REDIS)


def test_api_starts_and_accepts_without_redis(database_url: str, tmp_path: Path) -> None:
    port = free_port()
    with server(tmp_path, port, DATABASE_URL=database_url, REDIS_URL=NO_REDIS) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, headers=BEARER) as client:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    ready = client.get("/readyz")
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            accepted = client.post("/api/v1/volumes", json={"name": "a", "size": 1})
            too_large = client.post(
                "/api/v1/volumes", content=b" " * (2**20 + 1), headers={"Content-Type": "application/json"}
            )
        process.terminate()
        process.communicate(timeout=20)

    readiness = ready.json()
    assert (readiness["status"], readiness["postgresql"], readiness["redis"]) == ("degraded", "ok", "unavailable")
    assert (accepted.status_code, accepted.json()["status"]) == (202, "queued")
    assert (too_large.status_code, too_large.json()["code"]) == (413, "content-too-large")
