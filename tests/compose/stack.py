"""A stack in real containers, under its own project name, so that it does not touch other stacks of the user."""

import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from api.cli.stack import free_port

ROOT: Final = Path(__file__).parents[2]
FILES: Final = ("docker-compose.yaml", "tests/compose/slow.yaml")
TIMEOUT_SECONDS: Final = 180
_LOG_LINES: Final = 15


def _new_secrets() -> str:
    folder = Path(tempfile.mkdtemp(prefix="cistern-secrets-"))
    for name in ("api_password", "worker_password", "redis_password"):
        (folder / name).write_text(f"p@:/%41?# {secrets.token_hex(8)}\n")
        (folder / name).chmod(0o444)
    subprocess.run([sys.executable, "deploy/make_secrets.py", folder, folder / ".env"], cwd=ROOT, check=True)
    return str(folder)


@dataclass(frozen=True)
class Stack:
    """A stack driven by the commands ``compose`` and ``engine``, such as "docker compose" and "docker"."""

    compose: str
    engine: str
    project: str = field(default_factory=lambda: f"cistern-test-{os.getpid()}")
    port: int = field(default_factory=free_port)
    #: Contains characters that must be escaped in a URL.
    password: str = field(default_factory=lambda: f"p@:/%41?# {secrets.token_hex(8)}")

    #: The directory with the passwords of the API, of the workers and of Redis.
    secrets: str = field(default_factory=_new_secrets)

    @property
    def image(self) -> str:
        return self.project

    @property
    def _engine(self) -> list[str]:
        return shlex.split(self.engine)

    def obstacle(self) -> str | None:
        """Return the reason why no container can run here, or None."""
        for command in (f"{self.engine} info", f"{self.compose} version"):
            try:
                completed = self._run(shlex.split(command))
            except OSError as error:
                return f"`{command}`: {error.strerror}"
            if completed.returncode != 0:
                return f"`{command}`: {' '.join(completed.stderr.split())[-300:]}"
        return None

    def up(self, *, workers: int) -> None:
        """Build the image, and start all services."""
        self._compose("up", "-d", "--build", "--scale", f"worker={workers}")

    def down(self) -> None:
        """Remove the containers, but not the volumes."""
        self._remove_workers()
        self._compose("down")

    def remove(self) -> None:
        """Remove the containers, networks, volumes and the image."""
        self._remove_workers()
        self._compose("down", "--volumes")
        self._run([*self._engine, "image", "rm", "--force", self.image])
        shutil.rmtree(self.secrets)
        assert self._owned("ps", "--all") == self._owned("volume", "ls") == self._owned("network", "ls") == []

    def _remove_workers(self) -> None:
        """Stop and remove the workers: podman-compose does not remember the number given with ``--scale``."""
        if workers := self.containers("worker"):
            self.engine_run("stop", *workers)
            self.engine_run("rm", *workers)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, running or not."""
        return self._owned("ps", "--all", f"--filter=label=com.docker.compose.service={service}")

    def _owned(self, *arguments: str) -> list[str]:
        """List the ids of this stack's objects."""
        label = f"--filter=label=com.docker.compose.project={self.project}"
        return self.engine_run(*arguments, "--quiet", label).split()

    def container(self, service: str) -> str:
        (container,) = self.containers(service)
        return container

    def engine_run(self, *arguments: str) -> str:
        """Run a command of the engine, and return its output."""
        return _output(self._run([*self._engine, *arguments]))

    def inspect(self, kind: str, name: str) -> Any:
        """Return the engine's description of a container or an image."""
        (description,) = json.loads(self.engine_run(kind, "inspect", name))
        return description

    def exec(self, container: str, *command: str, user: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in a container."""
        return self._run([*self._engine, "exec", *(["--user", user] if user else []), container, *command])

    def is_healthy(self, container: str) -> bool:
        """Run the container's health check now; not every engine runs health checks by itself."""
        kind, *command = self.inspect("container", container)["Config"]["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.exec(container, *command).returncode == 0

    def query(self, statement: str) -> list[list[str]]:
        """Run a statement in the stack's PostgreSQL, and return the rows."""
        psql = "PGPASSWORD=$POSTGRES_PASSWORD psql --username cistern --tuples-only --no-align --command"
        output = _output(self.exec(self.container("postgres"), "sh", "-c", f"{psql} {shlex.quote(statement)}"))
        return [line.split("|") for line in output.splitlines()]

    def logs(self, container: str) -> str:
        """Return the whole log of a container."""
        completed = self._run([*self._engine, "logs", container])
        return completed.stdout + completed.stderr

    def print_logs(self) -> None:
        """Print the last lines of every container's log."""
        for service in ("postgres", "redis", "migrate", "api", "worker"):
            for container in self.containers(service):
                lines = self.logs(container).splitlines()[-_LOG_LINES:]
                sys.stderr.write("\n".join([f"--- {service} {container}", *lines, ""]))

    def _compose(self, *arguments: str) -> None:
        files = [f"--file={file}" for file in FILES]
        _output(self._run([*shlex.split(self.compose), f"--project-name={self.project}", *files, *arguments]))

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "CISTERN_IMAGE": self.image,
            "PORT": str(self.port),
            "POSTGRES_PASSWORD": self.password,
            "CISTERN_SECRETS": self.secrets,
            "CISTERN_TEST_DRIVERS": str(ROOT / "tests" / "support" / "drivers"),
        }
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _output(completed: subprocess.CompletedProcess[str]) -> str:
    assert completed.returncode == 0, (
        f"{shlex.join(completed.args)}: {completed.returncode}\n{completed.stdout[-2000:]}{completed.stderr[-4000:]}"
    )
    return completed.stdout


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds; ``what`` describes it in the error."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"after {TIMEOUT_SECONDS} s still not: {what}"
        time.sleep(0.2)
