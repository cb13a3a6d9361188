"""Private servers, API and worker processes, and volumes that are only rows, for all benchmarks."""

# ruff: noqa: INP001 - benchmarks are not a package

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
from sqlalchemy import text

from domain.access.secret import new_secret
from domain.db.database import Database
from domain.db.migrations import migrate
from domain.embedded import EmbeddedServers, temporary_data_dir
from domain.settings import Settings

MIB: Final = 1 << 20
HERE: Final = Path(__file__).parent
#: The drivers with delays and journals, made importable in this process and in those that it starts.
DRIVERS: Final = HERE.parent / "tests" / "support" / "drivers"
sys.path.append(str(DRIVERS))
_SECRET: Final = new_secret()
#: The header with the key that all benchmarks send.
BEARER: Final = {"Authorization": f"Bearer {_SECRET.text}"}
os.environ["PYTHONPATH"] = os.pathsep.join((str(HERE), str(DRIVERS)))


@contextmanager
def private_settings(**overrides: Any) -> Iterator[Settings]:
    """Run PostgreSQL and Redis for the duration of the block, with the same durability settings as in production."""
    with temporary_data_dir() as data_dir, EmbeddedServers(data_dir) as servers:
        migrate(servers.database_url)
        asyncio.run(add_key(servers.database_url))
        yield Settings(
            database_url=servers.database_url,
            redis_url=servers.redis_url,
            _env_file=None,
            **({"backends": {"local": "null:"}} | overrides),
        )


async def add_key(url: str) -> None:
    """Insert the key that all benchmarks send."""
    connection = await asyncpg.connect(url.replace("postgresql+asyncpg", "postgresql"))
    try:
        columns = "(id, public_id, digest, name, role)"
        insert = f"INSERT INTO api_keys {columns} VALUES (gen_random_uuid(), $1, $2, 'benchmark', 'system')"  # noqa: S608
        await connection.execute(insert, *_SECRET.proof)
    finally:
        await connection.close()


@contextmanager
def worker(settings: Settings, backend: str, **overrides: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker process for the duration of the block."""
    with running(["-m", "worker"], environment_for(settings, backend, **overrides)) as process:
        yield process


@contextmanager
def api(settings: Settings, backend: str, **overrides: object) -> Iterator[str]:
    """Run an API process for the duration of the block, and yield its address once it is ready."""
    with serving("api.main:app", environment_for(settings, backend, **overrides), "/readyz") as server:
        yield server.address


@dataclass(frozen=True)
class Server:
    """One uvicorn process."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(app: str, environment: Mapping[str, str], path: str, *, folder: Path | None = None) -> Iterator[Server]:
    """Run an application in uvicorn for the duration of the block, which starts once ``path`` responds.

    ``folder`` is the checkout that it is from, if it is another one.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = ["--no-access-log", "--log-level", "error"]
    with running(["-m", "uvicorn", app, "--port", str(port), *quiet], environment, folder=folder) as process:
        server = Server(port, process)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if httpx.get(server.address + path).is_success:
                    break
            time.sleep(0.05)
        yield server


def environment_for(settings: Settings, backend: str, **overrides: object) -> dict[str, str]:
    """Return the environment variables of a Cistern process."""
    environment = {
        "CISTERN_DATABASE_URL": settings.database_url,
        "CISTERN_REDIS_URL": settings.redis_url,
        "CISTERN_BACKENDS": f'{{"local": "{backend}"}}',
        "CISTERN_LOG_LEVEL": "error",
    }
    return environment | {f"CISTERN_{name.upper()}": str(value) for name, value in overrides.items()}


@contextmanager
def running(
    arguments: Sequence[str], environment: Mapping[str, str], *, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python with these arguments for the duration of the block.

    ``folder`` is the checkout whose virtual environment and code are used, if it is another one.
    """
    python = sys.executable if folder is None else folder / ".venv" / "bin" / "python"
    process = subprocess.Popen([python, *arguments], env=os.environ | environment, cwd=folder)  # noqa: S603
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def wait_for_workers(database: Database, processes: Collection[subprocess.Popen[bytes]]) -> None:
    """Wait until each of these workers has sent a heartbeat after the last one registered, and so knows the others."""
    pids = {process.pid for process in processes}
    while True:
        async with database.transaction() as session:
            all_known = text("SELECT pid FROM workers WHERE heartbeat_at > (SELECT max(started_at) FROM workers)")
            registered = text("SELECT pid FROM workers")
            if pids <= set(await session.scalars(all_known if len(pids) > 1 else registered)):
                return
        await asyncio.sleep(0.05)


async def insert_volumes(database: Database, volumes: int) -> None:
    """Replace all data by this number of available volumes of 1 MiB, and vacuum the tables."""
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
    """Vacuum all tables, so that no run pays for the previous one."""
    async with database._engine.connect() as connection:  # noqa: SLF001 (VACUUM runs outside transactions)
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("SET statement_timeout = 0"))
        await connection.execute(text("VACUUM ANALYZE"))
