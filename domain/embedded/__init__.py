"""A private PostgreSQL and Redis for `cistern up` and the tests: production's engines with nothing to install.

data directory
├── lock  run/              who uses it; the sockets of both servers
├── postgres/  .pid  .log
└── redis/     .pid  .log
"""

import atexit
import os
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from domain.embedded.directory import DataDirectory, refuse_closed, temporary_data_dir
from domain.embedded.postgres_server import PostgreSQL
from domain.embedded.redis_server import Redis

__all__ = ["EmbeddedServers", "temporary_data_dir"]


class EmbeddedServers:
    """A PostgreSQL and a Redis under one directory, between ``start`` and ``stop`` (or in a ``with`` block).

    Args:
        data_dir: made if it is missing; what it holds survives restarts.
        postgres: whether to run PostgreSQL.
        redis: whether to run Redis.
        durable: False for servers that are thrown away: their data need not survive a crash of the machine.
    """

    def __init__(self, data_dir: Path, *, postgres: bool = True, redis: bool = True, durable: bool = True) -> None:
        self._directory = DataDirectory(data_dir)
        self._postgres = PostgreSQL(self._directory, durable=durable)
        self._redis = Redis(self._directory)
        self._wants_postgres = postgres
        self._wants_redis = redis
        self._owner = 0

    @property
    def data_dir(self) -> Path:
        """The data directory's real path."""
        return self._directory.path

    @property
    def database_url(self) -> str:
        """PostgreSQL's address in SQLAlchemy's form, once it is started."""
        return self._postgres.url

    @property
    def redis_url(self) -> str:
        """Redis' address, once it is started."""
        return self._redis.url

    @property
    def pids(self) -> dict[str, int]:
        """The main processes that live: name -> process id."""
        found = {part.process.name: part.process.pid for part in (self._postgres, self._redis)}
        return {name: pid for name, pid in found.items() if pid is not None}

    def start(self) -> None:
        """Claim the directory, stop what a killed owner left running there, and start the servers.

        Raises:
            ConfigurationError: one line that says why it cannot be.
        """
        if self._wants_postgres and os.geteuid() == 0:
            refuse_closed(self._directory.path)
        self._directory.claim()
        self._owner = os.getpid()
        atexit.register(self.stop)
        try:
            self._stop_servers()
            self._directory.make_run()
            self._start_servers()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both servers, wait until their last process is gone, and let the directory go."""
        if self._owner != os.getpid():  # not started, stopped before, or a fork of the owner
            return
        self._owner = 0
        atexit.unregister(self.stop)
        try:
            self._stop_servers()
        finally:
            self._directory.release()

    def start_redis(self) -> None:
        """Start Redis again, at the same address."""
        self._redis.start()

    def kill_redis(self) -> None:
        """Kill Redis without a warning, as the out-of-memory killer does."""
        self._redis.kill()

    def restart_redis(self, *, empty: bool = False) -> None:
        """Kill Redis and start it again at the same address; ``empty`` also takes its data away."""
        self._redis.kill()
        if empty:
            self._redis.empty()
        self._redis.start()

    def stop_postgres(self, mode: Literal["fast", "immediate"] = "immediate") -> None:
        """Stop PostgreSQL; ``immediate`` is what a crash looks like."""
        self._postgres.stop(mode)

    def start_postgres(self) -> None:
        """Start PostgreSQL again, at the same address."""
        self._postgres.start()

    def restart_postgres(self, mode: Literal["fast", "immediate"] = "immediate") -> None:
        """Stop PostgreSQL and start it again at the same address."""
        self._postgres.stop(mode)
        self._postgres.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_servers(self) -> None:
        if self._wants_postgres:
            self._postgres.start()
        if self._wants_redis:
            self._redis.start()

    def _stop_servers(self) -> None:
        self._redis.process.stop()
        self._postgres.process.stop()
