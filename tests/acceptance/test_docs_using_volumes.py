"""The commands of docs/using-volumes.md are run, in their order, and write what the page says."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from domain.embedded import temporary_data_dir
from tests.acceptance.test_up import running, until
from tests.integration.host_builders import cleaned_up, devices_in, require_loop_devices, require_tools
from tests.support.podman import Podman, own_podman

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "using-volumes.md").read_text()
PROMPT: Final = re.compile("[$#] ")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root: it mounts volumes"),
]


def section(heading: str) -> str:
    _, found, rest = PAGE.partition(f"\n## {heading}\n")
    assert found, heading
    return rest.partition("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[tuple[str, str]]:
    """Return the commands of all blocks, each with what it writes."""
    found: list[tuple[str, str]] = []
    for line in "".join(blocks(text, "console")).splitlines(keepends=True):
        if PROMPT.match(line):
            found.append((line[2:].strip(), ""))
        else:
            command, output = found[-1]
            found[-1] = command, output + line
    return found


class Shell:
    """Runs commands of the page in a directory, in which `/srv` is, too."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CISTERN_")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
        node = {"CISTERN_NODE": "web-1", "CISTERN_NODE_DIR": str(directory / "mounts")}
        self.environment = {**inherited, **node, "PATH": path, "CISTERN_URL": url}

    def run(self, command: str, expected: str = "") -> None:
        """Run a command, which must write what is expected: `...` is any text, and a number any number."""
        completed = subprocess.run(
            ["bash", "-c", command.replace("/srv/", f"{self.directory}/srv/")],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        output = (completed.stdout + completed.stderr).replace(f"{self.directory}/srv/", "/srv/")
        assert (completed.returncode == 0) is not expected.startswith("cistern: "), f"{command}: {output}"
        if expected:
            assert re.fullmatch(pattern(expected), " ".join(output.split())), f"{command}: {output}"

    @contextmanager
    def running(self, script: str) -> Iterator[None]:
        """Run a script that does not end, for the duration of the block."""
        with subprocess.Popen(["bash", "-c", script], cwd=self.directory, env=self.environment) as process:
            try:
                yield
            finally:
                process.terminate()

    def is_node_alive(self) -> bool:
        listed = subprocess.run(
            ["cistern", "nodes", "--json"], cwd=self.directory, env=self.environment, capture_output=True, check=True
        )
        return b'"is_alive": true' in listed.stdout


def pattern(expected: str) -> str:
    """Return a regular expression for what a command writes."""
    words = re.escape(" ".join(expected.split()))
    return re.sub(r"\d+(\\\.\d+)?", r"[\\d.]+", words.replace(r"\.\.\.", ".*"))


@pytest.fixture
def shell() -> Iterator[Shell]:
    """A shell in a directory in which `cistern up` runs, and beside it the agent, as the page starts it."""
    require_loop_devices()
    require_tools("mkfs.xfs", "xfs_growfs", "mkfs.ext4")
    with temporary_data_dir() as directory:
        data_dir = directory / ".cistern"
        data_dir.mkdir()
        with running(data_dir, "--workers", "1") as up:
            shell = Shell(directory, up.url)
            settings, agent = (command for command, _ in commands(section("In a shell"))[:2])
            assert agent == "cistern node"
            try:
                with shell.running(f"{settings}; exec {agent}"):
                    until(shell.is_node_alive)
                    yield shell
            finally:
                cleaned_up(directory)
                assert devices_in(directory) == []


def test_commands_of_the_page_for_a_shell_do_what_it_says(shell: Shell) -> None:
    for command, expected in commands(section("In a shell"))[2:]:
        shell.run(command, expected)


@pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed (apt-get install podman)")
def test_commands_of_the_page_for_an_engine_do_what_it_says(shell: Shell, tmp_path: Path) -> None:
    socket = shell.directory / "plugin.sock"
    start, *others = (command for command, _ in commands(section("Docker and Podman")))
    assert start == "CISTERN_URL=https://cistern.example CISTERN_KEY=... cistern docker-plugin"
    with shell.running(f"exec cistern docker-plugin --socket {socket}"):
        until(socket.exists)
        with own_podman(socket, tmp_path) as podman:
            for command in others:
                _run_in_podman(podman, command)
            for volumes in compose_volumes():
                _create_in_podman(podman, volumes)


def _run_in_podman(podman: Podman, command: str) -> None:
    """Run a command that is written for Docker, with an image that is here, and without a network."""
    program, *words = command.split()
    assert program == "docker"
    changed = {"-d": "--driver", "alpine": "shell", "--rm": "--rm --network=none"}
    output = podman.run(*" ".join(changed.get(word, word) for word in words).split())
    if words[0] == "run":
        assert re.search(r" (9\.\d|10)G .* /data$", output.strip()), output


def compose_volumes() -> list[dict[str, Any]]:
    return [yaml.safe_load(block)["volumes"]["data"] for block in blocks(section("Compose"), "yaml")]


def _create_in_podman(podman: Podman, volume: dict[str, Any]) -> None:
    """Create a volume as Compose does from a file; one that is external is used as it is."""
    if not volume.get("external"):
        options = [f"{name}={value}" for name, value in volume["driver_opts"].items()]
        podman.run(
            "volume", "create", "--driver", volume["driver"], *(f"--opt={one}" for one in options), "project_data"
        )
