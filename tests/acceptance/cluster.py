"""Starts the worker and API processes of a test, and kills all of them when the test ends."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from domain.db.migrations.grants import Part
from domain.settings import Settings
from tests.acceptance.scale import LONG
from tests.support.forked import Forked, Process
from tests.support.output_search import require_none_in_command_lines, require_none_in_file
from tests.support.roles import ROLES, as_role

ROOT = Path(__file__).parents[2]
#: Sizes of a volume before and after it has grown (bytes).
SMALL, LARGE = 1 << 20, 3 << 20


@dataclass
class Cluster:
    """The processes of one test, sharing a database, a Redis, and a directory of volumes with a journal."""

    settings: Settings
    folder: Path
    processes: list[Process] = field(default_factory=list)
    #: The files with the stderr of those that do not share that of the tests.
    logs: set[Path] = field(default_factory=set)

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def volumes(self) -> Path:
        return self.folder / "volumes"

    def gate(self, name: str = "gate") -> Path:
        """Return the path of a file; storage operations block while it exists."""
        return self.folder / name

    def url(self, **options: object) -> str:
        query = "&".join(f"{name}={value}" for name, value in ({"journal": self.journal} | options).items())
        return f"faulty+file:{self.volumes}?{query}"

    def start_worker(self, *command: str, url: str | None = None, log: Path | None = None, **extra: str) -> Process:
        """Start a worker process, whose backend ``local`` is at ``url`` and whose stderr goes to ``log``."""
        return self.start(command or ["worker"], url or self.url(), log, Part.WORKER, **extra)

    def start_api(
        self,
        *,
        command: Sequence[str] = ("uvicorn", "api.main:app"),
        log: Path | None = None,
        options: Sequence[str] = ("--no-access-log",),
        **extra: str,
    ) -> str:
        """Start the API on a free port, and return its address once it is ready."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        process = self.start([*command, "--port", port, *options], self.url(), log, Part.API, **extra)
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        with httpx.Client(verify=False) as client:  # loading certificates takes 30 ms of CPU time
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(httpx.TransportError):
                    if client.get(f"{address}/readyz").status_code == 200:
                        return address
                time.sleep(0.02)
        raise AssertionError("the API did not become ready")

    def start(
        self, command: Sequence[str], url: str, log: Path | None = None, part: Part = Part.WORKER, **extra: str
    ) -> Process:
        """Run ``python -m COMMAND``, forked unless the long tests run, which use a new interpreter."""
        environment = os.environ | self.environment(part) | {"CISTERN_BACKENDS": f'{{"local": "{url}"}}'} | extra
        process = (_spawn if LONG else Forked)(command, environment, log)
        self.processes.append(process)
        if log is not None:
            self.logs.add(log)
        return process

    def environment(self, part: Part = Part.WORKER) -> dict[str, str]:
        """Return the variables of a process, which has the role of its part in PostgreSQL."""
        names = {"database_url", "redis_url", "lease_seconds", "heartbeat_timeout_seconds", "retry_seconds"}
        values = self.settings.model_dump(include=names)
        values["database_url"] = as_role(values["database_url"], ROLES[part])
        return {f"CISTERN_{name.upper()}": str(value) for name, value in values.items()}

    def clear(self) -> None:
        """Kill all processes, which must have shown no key and no password."""
        try:
            require_none_in_command_lines()
        finally:
            self._kill_all()
        for log in self.logs:
            require_none_in_file(log)

    def _kill_all(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


def _spawn(command: Sequence[str], environment: Mapping[str, str], stderr: Path | None) -> Process:
    with stderr.open("ab") if stderr is not None else contextlib.nullcontext() as log:
        return subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, stderr=log)
