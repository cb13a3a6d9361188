"""A private PostgreSQL and Redis for `cistern up` and the tests: the engines of production, from Python wheels.

data directory
├── lock  run/              the owner's lock; the sockets of both servers
├── postgres/  .pid  .log
└── redis/     .pid  .log
"""

import atexit
import os
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from domain.embedded.directory import DataDirectory, refuse_impassable, temporary_data_dir
from domain.embedded.postgres_server import PostgreSQL
from domain.embedded.redis_server import Redis

__all__ = ["EmbeddedServers", "temporary_data_dir"]


class EmbeddedServers:
    """A PostgreSQL and a Redis under one directory, between ``start`` and ``stop`` (or in a ``with`` block).

    Args:
        data_dir: created if it is missing; its data survives restarts.
        postgres: whether to run PostgreSQL.
        redis: whether to run Redis.
        durable: False for disposable servers, whose data need not survive a crash of the machine.
    """

    def __init__(self, data_dir: Path, *, postgres: bool = True, redis: bool = True, durable: bool = True) -> None:
        self._directory = DataDirectory(data_dir)
        self._postgres = PostgreSQL(self._directory, durable=durable)
        self._redis = Redis(self._directory)
        self._runs_postgres = postgres
        self._runs_redis = redis
        self._owner_pid = 0

    @property
    def data_dir(self) -> Path:
        """The data directory's real path."""
        return self._directory.path

    @property
    def database_url(self) -> str:
        """PostgreSQL's URL for SQLAlchemy, valid once it is started."""
        return self._postgres.url

    @property
    def redis_url(self) -> str:
        """Redis' URL, valid once it is started."""
        return self._redis.url

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the running main processes, by name."""
        pids = {server.process.name: server.process.pid for server in (self._postgres, self._redis)}
        return {name: pid for name, pid in pids.items() if pid is not None}

    def start(self) -> None:
        """Claim the directory, stop servers that a killed owner left running there, and start the servers.

        Raises:
            ConfigurationError: the directory or a server cannot be used; the message is one line.
        """
        if self._runs_postgres and os.geteuid() == 0:
            refuse_impassable(self._directory.path)
        self._directory.claim()
        self._owner_pid = os.getpid()
        atexit.register(self.stop)
        try:
            self._stop_servers()
            self._directory.make_run()
            self._start_servers()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop both servers, wait until their last process has ended, and release the directory."""
        if self._owner_pid != os.getpid():  # never started, already stopped, or in a fork of the owner
            return
        self._owner_pid = 0
        atexit.unregister(self.stop)
        try:
            self._stop_servers()
        finally:
            self._directory.release()

    def start_redis(self) -> None:
        """Start Redis again at the same URL."""
        self._redis.start()

    def kill_redis(self) -> None:
        """Kill Redis with SIGKILL, as the out-of-memory killer does."""
        self._redis.kill()

    def restart_redis(self, *, empty: bool = False) -> None:
        """Kill Redis and start it again at the same URL; ``empty`` deletes its data in between."""
        self._redis.kill()
        if empty:
            self._redis.delete_data()
        self._redis.start()

    def stop_postgres(self, mode: Literal["fast", "immediate"] = "immediate") -> None:
        """Stop PostgreSQL; ``immediate`` is like a crash."""
        self._postgres.stop(mode)

    def start_postgres(self) -> None:
        """Start PostgreSQL again at the same URL."""
        self._postgres.start()

    def restart_postgres(self, mode: Literal["fast", "immediate"] = "immediate") -> None:
        """Stop PostgreSQL and start it again at the same URL."""
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
        if self._runs_postgres:
            self._postgres.start()
        if self._runs_redis:
            self._redis.start()

    def _stop_servers(self) -> None:
        self._redis.process.stop()
        self._postgres.process.stop()
