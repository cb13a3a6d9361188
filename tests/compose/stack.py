"""A stack in real containers, under a project name of its own: whoever runs one of their own keeps it."""

import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
FILES: Final = ("docker-compose.yaml", "tests/compose/slow.yaml")
PATIENCE: Final = 180
_LAST_WORDS: Final = 15


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass(frozen=True)
class Stack:
    """``compose`` and ``engine`` are the commands that drive it, such as "docker compose" and "docker"."""

    compose: str
    engine: str
    project: str = field(default_factory=lambda: f"cistern-test-{os.getpid()}")
    port: int = field(default_factory=_free_port)
    #: Looks like anything but a part of a URL.
    password: str = field(default_factory=lambda: f"p@:/%41?# {secrets.token_hex(8)}")

    @property
    def image(self) -> str:
        return self.project

    @property
    def _engine(self) -> list[str]:
        return shlex.split(self.engine)

    def obstacle(self) -> str | None:
        """What keeps it from running here, if anything does."""
        for command in (f"{self.engine} info", f"{self.compose} version"):
            try:
                done = self._run(shlex.split(command))
            except OSError as error:
                return f"`{command}`: {error.strerror}"
            if done.returncode != 0:
                return f"`{command}`: {' '.join(done.stderr.split())[-300:]}"
        return None

    def up(self, *, workers: int) -> None:
        """Build the image, and start everything."""
        self._compose("up", "-d", "--build", "--scale", f"worker={workers}")

    def down(self) -> None:
        """Remove the containers; the volumes stay."""
        self._remove_workers()
        self._compose("down")

    def clear_away(self) -> None:
        """Remove what is left of it, with its volumes and its image."""
        self._remove_workers()
        self._compose("down", "--volumes")
        self._run([*self._engine, "image", "rm", "--force", self.image])
        assert self._owned("ps", "--all") == self._owned("volume", "ls") == self._owned("network", "ls") == []

    def _remove_workers(self) -> None:
        """Remove them one by one: podman-compose forgets how many there were, when it was told so by ``--scale``."""
        if workers := self.containers("worker"):
            self.ask("stop", *workers)
            self.ask("rm", *workers)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, running or not."""
        return self._owned("ps", "--all", f"--filter=label=com.docker.compose.service={service}")

    def _owned(self, *arguments: str) -> list[str]:
        """What the engine lists, and is this stack's."""
        label = f"--filter=label=com.docker.compose.project={self.project}"
        return self.ask(*arguments, "--quiet", label).split()

    def container(self, service: str) -> str:
        (container,) = self.containers(service)
        return container

    def ask(self, *arguments: str) -> str:
        """Have the engine do something, and return what it says."""
        return _said(self._run([*self._engine, *arguments]))

    def look(self, kind: str, name: str) -> Any:
        """What the engine knows of a container or an image."""
        (known,) = json.loads(self.ask(kind, "inspect", name))
        return known

    def within(self, container: str, *command: str, user: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in a container."""
        return self._run([*self._engine, "exec", *(["--user", user] if user else []), container, *command])

    def is_healthy(self, container: str) -> bool:
        """Whether its health check would pass now; not every engine makes them by itself."""
        kind, *command = self.look("container", container)["Config"]["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.within(container, *command).returncode == 0

    def query(self, statement: str) -> list[list[str]]:
        """Ask the stack's PostgreSQL."""
        psql = "PGPASSWORD=$POSTGRES_PASSWORD psql --username cistern --tuples-only --no-align --command"
        said = _said(self.within(self.container("postgres"), "sh", "-c", f"{psql} {shlex.quote(statement)}"))
        return [line.split("|") for line in said.splitlines()]

    def logs(self, container: str) -> str:
        """All that a container has said."""
        done = self._run([*self._engine, "logs", container])
        return done.stdout + done.stderr

    def say_last_words(self) -> None:
        """Print how the logs end, of a stack that has disappointed."""
        for service in ("postgres", "redis", "migrate", "api", "worker"):
            for container in self.containers(service):
                lines = self.logs(container).splitlines()[-_LAST_WORDS:]
                sys.stderr.write("\n".join([f"--- {service} {container}", *lines, ""]))

    def _compose(self, *arguments: str) -> None:
        files = [f"--file={file}" for file in FILES]
        _said(self._run([*shlex.split(self.compose), f"--project-name={self.project}", *files, *arguments]))

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "CISTERN_IMAGE": self.image,
            "PORT": str(self.port),
            "POSTGRES_PASSWORD": self.password,
        }
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, (
        f"{shlex.join(done.args)}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    )
    return done.stdout


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something."""
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, f"after {PATIENCE} s still not: {what}"
        time.sleep(0.2)
