"""The interpreters that run the peers, each in a virtual environment with its own packages."""

# ruff: noqa: INP001 - benchmarks are not a package

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from servers import HERE

#: The folder of the modules in JavaScript, and of the packages that npm installs for them.
NODE: Final = HERE / "peers" / "node"


@dataclass(frozen=True)
class Runtime:
    """An interpreter, and the peers' modules that it runs."""

    #: The Makefile makes the virtual environment `.venv-NAME` from the lock file `NAME.lock`.
    name: str
    modules: tuple[str, ...]
    #: Packages whose versions the report names.
    packages: tuple[str, ...]
    program: str = "python"
    #: Arguments that precede the name of a module and a command.
    entry: tuple[str, ...] = ("-m", "peers")

    @property
    def interpreter(self) -> Path:
        """The path of the program."""
        return self._venv / "bin" / self.program

    @property
    def is_installed(self) -> bool:
        """Whether the Makefile has installed it."""
        return (self._venv / ".ready").exists()

    def versions(self) -> list[str]:
        """Return the names and versions of the packages that are installed."""
        paths = [str(path) for path in self._venv.glob("lib/python*/site-packages")]
        found = (importlib.metadata.distributions(name=name, path=paths) for name in self.packages)
        return [f"{package.name} {package.version}" for packages in found for package in packages]

    @property
    def _venv(self) -> Path:
        return HERE.parent / f".venv-{self.name}"


@dataclass(frozen=True)
class NodeRuntime(Runtime):
    """Node.js, which comes from a Python package."""

    program: str = "node"
    entry: tuple[str, ...] = (str(NODE / "main.js"),)

    def versions(self) -> list[str]:
        """Return the names and versions of the packages from npm."""
        manifests = [json.loads((NODE / "node_modules" / name / "package.json").read_bytes()) for name in self.packages]
        return [f"{manifest['name']} {manifest['version']}" for manifest in manifests]


PEERS: Final = Runtime(
    "peers",
    modules=(
        *("taskiq", "dramatiq", "huey", "celery", "streaq", "docket"),
        *("procrastinate", "pgqueuer", "chancy", "awa", "dbos", "absurd"),
        "no_queue",
    ),
    packages=(
        *("taskiq", "taskiq-redis", "dramatiq", "huey", "celery", "streaq", "pydocket"),
        *("procrastinate", "pgqueuer", "chancy", "awa-pg", "dbos", "absurd-sdk"),
    ),
)
RUNTIMES: Final = (
    # arq and SAQ do not work with the redis-py version that taskiq requires.
    Runtime("peers-redis5", modules=("arq", "saq"), packages=("arq", "saq")),
    PEERS,
    # It needs a newer Python than Cistern and the others.
    Runtime("peers-oban", modules=("oban",), packages=("oban",)),
    NodeRuntime(
        "peers-node",
        modules=("graphile_worker", "pgboss", "no_queue"),
        packages=("graphile-worker", "pg-boss", "pg"),
    ),
)
