"""What every benchmark stands on: servers of its own, worker processes, volumes that are only rows."""

# ruff: noqa: INP001 - benchmarks are no package, and what they wait for are other processes

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import httpx
from sqlalchemy import text

from domain.db.database import Database
from domain.db.migrations import migrate
from domain.embedded import EmbeddedServers, temporary_data_dir
from domain.settings import Settings

MIB: Final = 1 << 20


@contextmanager
def private_settings(**chosen: Any) -> Iterator[Settings]:
    """Start PostgreSQL and Redis as a user would have them, fsync and all, for as long as the block lasts."""
    with temporary_data_dir() as data_dir, EmbeddedServers(data_dir) as servers:
        migrate(servers.database_url)
        yield Settings(
            database_url=servers.database_url,
            redis_url=servers.redis_url,
            _env_file=None,
            **({"backends": {"local": "null:"}} | chosen),
        )


@contextmanager
def worker(settings: Settings, backend: str, **chosen: object) -> Iterator[subprocess.Popen[bytes]]:
    """Have a worker process as long as the block lasts."""
    with _process([sys.executable, "-m", "worker"], told(settings, backend, **chosen)) as process:
        yield process


@contextmanager
def api(settings: Settings, backend: str, **chosen: object) -> Iterator[str]:
    """Have an API process as long as the block lasts; its address, as soon as it answers."""
    with serving("api.main:app", told(settings, backend, **chosen), "/readyz") as server:
        yield server.address


@dataclass(frozen=True)
class Server:
    """One process of uvicorn."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(app: str, environment: dict[str, str], path: str) -> Iterator[Server]:
    """Have an application served as long as the block lasts, which begins when ``path`` is answered."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = ["--no-access-log", "--log-level", "error"]
    with _process([sys.executable, "-m", "uvicorn", app, "--port", str(port), *quiet], environment) as process:
        server = Server(port, process)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if httpx.get(server.address + path).is_success:
                    break
            time.sleep(0.05)
        yield server


def told(settings: Settings, backend: str, **chosen: object) -> dict[str, str]:
    """What a process of Cistern is told by its environment."""
    given = {
        "CISTERN_DATABASE_URL": settings.database_url,
        "CISTERN_REDIS_URL": settings.redis_url,
        "CISTERN_BACKENDS": f'{{"local": "{backend}"}}',
        "CISTERN_LOG_LEVEL": "error",
    }
    return given | {f"CISTERN_{name.upper()}": str(value) for name, value in chosen.items()}


@contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=os.environ | environment)  # noqa: S603 (our own command)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def at_work(database: Database, processes: Collection[subprocess.Popen[bytes]]) -> None:
    """Wait until these workers beat, and each has done so since the last of them came: then they know of each other."""
    pids = {process.pid for process in processes}
    while True:
        async with database.transaction() as session:
            known = text("SELECT pid FROM workers WHERE heartbeat_at > (SELECT max(started_at) FROM workers)")
            alone = text("SELECT pid FROM workers")
            if pids <= set(await session.scalars(known if len(pids) > 1 else alone)):
                return
        await asyncio.sleep(0.05)


async def fill(database: Database, volumes: int) -> None:
    """Have just so many available volumes of one mebibyte, no jobs, and tables as after a vacuum."""
    async with database.transaction() as session:
        await session.execute(text("TRUNCATE jobs, job_items, volumes, snapshots, workers CASCADE"))
        await session.execute(text("SET LOCAL statement_timeout = 0"))
        await session.execute(
            text(
                "INSERT INTO volumes (id, name, backend, state, size, version, labels)"
                " SELECT gen_random_uuid(), 'bulk-' || n, 'local', 'available', :size, 1, '{}'"
                " FROM generate_series(1, :volumes) AS n"
            ),
            {"size": MIB, "volumes": volumes},
        )
    await vacuum(database)


async def vacuum(database: Database) -> None:
    """Vacuum everything, so that no run pays for the one before it."""
    async with database._engine.connect() as connection:  # noqa: SLF001 (no transaction may be open)
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("SET statement_timeout = 0"))
        await connection.execute(text("VACUUM ANALYZE"))
