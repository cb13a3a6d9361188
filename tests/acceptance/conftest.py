"""Real processes, each gone at the end of its test."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from domain.settings import Settings
from tests.acceptance.report import Report
from tests.acceptance.scale import LONG

ROOT = Path(__file__).parents[2]


@dataclass
class Yard:
    """Where a test starts its workers: one database, one Redis, one directory of volumes with a journal."""

    settings: Settings
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def volumes(self) -> Path:
        return self.folder / "volumes"

    def gate(self, name: str = "gate") -> Path:
        """A file that holds storage work up for as long as it exists."""
        return self.folder / name

    def url(self, **options: object) -> str:
        given = "&".join(f"{name}={value}" for name, value in ({"journal": self.journal} | options).items())
        return f"faulty+file:{self.volumes}?{given}"

    def start_worker(
        self, module: str = "worker", *, url: str | None = None, stderr: int | None = None, **extra: str
    ) -> subprocess.Popen[bytes]:
        """Start a worker process; ``url`` is its own idea of the backend ``local``."""
        backends = f'{{"local": "{url or self.url()}"}}'
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env=os.environ | self.environment() | {"CISTERN_BACKENDS": backends} | extra,
            stderr=stderr,
        )
        self.processes.append(process)
        return process

    def start_api(self, *, stderr: int | None = None) -> str:
        """Start the API on a free port; returns its address once it is ready."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "api.main:app", "--port", port, "--no-access-log"],
            cwd=ROOT,
            env=os.environ | self.environment() | {"CISTERN_BACKENDS": f'{{"local": "{self.url()}"}}'},
            stderr=stderr,
        )
        self.processes.append(process)
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/readyz").status_code == 200:
                    return address
            time.sleep(0.02)
        raise AssertionError("the API did not become ready")

    def environment(self) -> dict[str, str]:
        given = self.settings.model_dump(include={"database_url", "redis_url", "lease_seconds", "retry_seconds"})
        return {f"CISTERN_{name.upper()}": str(value) for name, value in given.items()}

    def clear(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


@pytest.fixture
def yard(settings: Settings, tmp_path: Path) -> Iterator[Yard]:
    yard = Yard(settings.model_copy(update={"lease_seconds": 1.5}), tmp_path)
    yard.settings = yard.settings.model_copy(update={"backends": {"local": yard.url()}})
    try:
        yield yard
    finally:
        yard.clear()


@pytest.fixture(scope="session")
def report() -> Report:
    """A page that the long fault tests leave behind."""
    return Report(ROOT / "build" / "faults.md" if LONG else None)
