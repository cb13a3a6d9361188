"""Podman with a storage of its own, whose containers use volumes through the volume plugin."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import pytest

CONTAINERS_CONF = Path(os.environ.get("CONTAINERS_CONF", "/etc/containers/containers.conf"))


class Podman:
    """Podman with a storage and settings of its own."""

    def __init__(self, directory: Path, socket: Path) -> None:
        settings = CONTAINERS_CONF.read_text() if CONTAINERS_CONF.exists() else ""
        conf = directory / "containers.conf"
        conf.write_text(f'{settings}\n[engine.volume_plugins]\ncistern = "{socket}"\n')
        self._options = [f"--root={directory}/root", f"--runroot={directory}/run", f"--tmpdir={directory}/tmp"]
        self._options.append("--storage-driver=vfs")
        self._environment = {**os.environ, "CONTAINERS_CONF": str(conf)}

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(arguments),
            env=self._environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def open(self, *arguments: str, stderr: IO[str]) -> "subprocess.Popen[str]":
        """Start a command, whose output is read from a pipe."""
        command = self._command(arguments)
        return subprocess.Popen(command, env=self._environment, stdout=subprocess.PIPE, stderr=stderr, text=True)

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return ["podman", *self._options, *arguments]

    def run(self, *arguments: str) -> str:
        """Run a command, which must succeed, and return its output."""
        done = self.start(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shell(self, volume: str, script: str) -> str:
        """Run a script in a container that has a volume at /data."""
        return self.run("run", "--rm", "--network=none", f"--volume={volume}:/data", "shell", "/bin/sh", "-c", script)

    def error(self, *arguments: str) -> str:
        done = self.start(*arguments)
        assert done.returncode != 0
        return done.stderr


def make_image(directory: Path) -> Path:
    """Write an image that has nothing but a shell, a few programs, and the libraries that they need."""
    root = directory / "image"
    for program in ("sh", "cat", "dd", "df", "sleep"):
        file = Path(shutil.which(program) or "").resolve()
        words = subprocess.run(["ldd", file], check=True, capture_output=True, text=True).stdout.split()
        for source, target in [(file, f"/bin/{program}"), *((Path(one), one) for one in words if one.startswith("/"))]:
            copy = root / target.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    archive = directory / "image.tar"
    subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
    return archive


@contextmanager
def own_podman(socket: Path, directory: Path) -> Iterator[Podman]:
    """Yield a Podman that has the image ``shell`` and the volume plugin at a socket; remove all that it made.

    Skip the test where it does not work.
    """
    with TemporaryDirectory(prefix="podman-") as own:  # podman wants a short path
        podman = Podman(Path(own), socket)
        container = ["run", "--rm", "--network=none", "shell", "/bin/sh", "-c", "exit 0"]
        try:
            for command in (["import", str(make_image(directory)), "shell"], container):
                done = podman.start(*command)
                if done.returncode != 0:  # it may be able to make images and no containers
                    pytest.skip(f"podman does not work here: {done.stderr}")
            yield podman
        finally:
            podman.run("rm", "--all", "--force", "--time=0")
            podman.start("volume", "rm", "--all", "--force")  # is refused while a volume has snapshots
            podman.run("rmi", "--all", "--force")
