"""A private PostgreSQL and Redis for `cistern up` and the tests: the engines of production, from Python wheels.

data directory
├── lock  run/              the owner's lock; the sockets of both servers
├── postgres/  .pid  .log
└── redis/     .pid  .log
"""

import atexit
import os
from pathlib import Path
from typing import Self

from domain.embedded.directory import DataDirectory, refuse_impassable, temporary_data_dir
from domain.embedded.servers import PostgreSQL, Redis

__all__ = ["EmbeddedServers", "temporary_data_dir"]


class EmbeddedServers:
    """A PostgreSQL and a Redis under one directory, between ``start`` and ``stop`` (or in a ``with`` block).

    In between, ``postgres`` and ``redis`` can be stopped and started again at the same URL.

    Args:
        data_dir: created if it is missing; its data survives restarts.
        postgres: whether to run PostgreSQL.
        redis: whether to run Redis.
        durable: False for disposable servers, whose data need not survive a crash of the machine.
    """

    def __init__(self, data_dir: Path, *, postgres: bool = True, redis: bool = True, durable: bool = True) -> None:
        self._directory = DataDirectory(data_dir)
        self.data_dir = self._directory.path  # the real path
        self.postgres = PostgreSQL(self._directory, durable=durable)
        self.redis = Redis(self._directory)
        self._runs_postgres = postgres
        self._runs_redis = redis
        self._owner_pid = 0

    @property
    def database_url(self) -> str:
        """PostgreSQL's URL for SQLAlchemy, valid once it is started."""
        return self.postgres.url

    @property
    def application_url(self) -> str:
        """PostgreSQL's URL for the API and the workers; their role needs `grant_to`."""
        return self.postgres.application_url

    @property
    def redis_url(self) -> str:
        """Redis' URL, valid once it is started."""
        return self.redis.url

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the running main processes, by name."""
        pids = {server.name: server.pid for server in (self.postgres, self.redis)}
        return {name: pid for name, pid in pids.items() if pid is not None}

    def start(self) -> None:
        """Claim the directory, stop servers that a killed owner left running there, and start the servers.

        Raises:
            ConfigurationError: the directory or a server cannot be used; the message is one line.
        """
        if os.geteuid() == 0 and (self._runs_postgres or self._runs_redis):
            refuse_impassable(self.data_dir)
        self._directory.claim()
        self._owner_pid = os.getpid()
        atexit.register(self.stop)
        try:
            self._stop_servers()
            self._directory.make_run()
            if self._runs_postgres:
                self.postgres.start()
            if self._runs_redis:
                self.redis.start()
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

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _stop_servers(self) -> None:
        self.redis.stop()
        self.postgres.stop()
