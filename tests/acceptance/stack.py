"""The whole of Cistern in processes of its own, with servers of its own that a test may strike down."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import httpx
from sqlalchemy import text

from domain.db.database import Database
from domain.db.migrations import migrate
from domain.embedded import EmbeddedServers, temporary_data_dir
from domain.settings import Settings
from tests.acceptance.cluster import ROOT, Cluster
from tests.acceptance.judge import watch_closely
from tests.acceptance.waiting import exit_code
from tests.support.forked import Process

WORKERS = 3
_LAST_WORDS = 200


@dataclass
class Stack:
    """PostgreSQL, Redis, an API, and a fleet of workers."""

    cluster: Cluster
    servers: EmbeddedServers
    database: Database
    storage: str
    log: Path
    address: str = ""
    fleet: list[Process] = field(default_factory=list)

    def add_worker(self, **extra: str) -> Process:
        worker = self.cluster.start_worker(url=self.storage, log=self.log, **extra)
        self.fleet.append(worker)
        return worker

    def kill(self, worker: Process) -> None:
        """End a worker as the out-of-memory killer does, and let another take its place."""
        self.fleet.remove(worker)
        worker.kill()
        worker.wait()
        self.add_worker()

    def client(self) -> httpx.AsyncClient:
        # Let go of idle connections before the server does, or a request may cross its goodbye.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=1)
        return httpx.AsyncClient(base_url=f"{self.address}/api/v1", timeout=60, limits=limits)

    async def ready(self) -> None:
        """Wait until every worker of the fleet is at work: one that still starts knows no good manners."""
        async with asyncio.timeout(60):
            while not {worker.pid for worker in self.fleet} <= await self._at_work():
                await asyncio.sleep(0.05)

    async def replace(self, worker: Process, **extra: str) -> int:
        """Let another worker take the place of one that is told to go, as a deploy does; returns its last word."""
        self.add_worker(**extra)
        await self.ready()
        self.fleet.remove(worker)
        worker.send_signal(signal.SIGTERM)
        return await exit_code(worker)

    async def inspect(self) -> list[dict[str, Any]]:
        """What `cistern check --repair` finds; it must be able to repair all of it."""
        command = [sys.executable, "-c", "from api.cli.app import main; main()", "check", "--repair", "--json"]
        environment = (
            os.environ | self.cluster.environment() | {"CISTERN_BACKENDS": f'{{"local": "{self.cluster.url()}"}}'}
        )
        done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, env=environment, capture_output=True)
        assert done.returncode == 0, done
        return [json.loads(line) for line in done.stdout.splitlines()]

    async def send_home(self) -> list[int]:
        """End every worker in good order; returns what they said in the end."""
        await self.ready()
        for worker in self.fleet:
            worker.send_signal(signal.SIGTERM)
        return [await exit_code(worker) for worker in self.fleet]

    async def _at_work(self) -> set[int]:
        async with self.database.transaction() as session:
            return set(await session.scalars(text("SELECT pid FROM workers")))

    def start_api(self) -> None:
        self.address = self.cluster.start_api(log=self.log)


@asynccontextmanager
async def standing(*, workers: int = WORKERS, delay_ms: int = 20, **settings: Any) -> AsyncIterator[Stack]:
    """Have a whole stack stand as long as the block lasts."""
    with temporary_data_dir() as data_dir, EmbeddedServers(data_dir, durable=False) as servers:
        folder = Path(mkdtemp(prefix="storage-", dir=data_dir))
        await asyncio.to_thread(migrate, servers.database_url)
        chosen = Settings(
            database_url=servers.database_url,
            redis_url=servers.redis_url,
            _env_file=None,
            **({"lease_seconds": 3, "heartbeat_timeout_seconds": 0.5, "retry_seconds": 0.1} | settings),
        )
        cluster = Cluster(chosen, folder)
        database = Database(servers.database_url)
        try:
            await watch_closely(database)
            stack = Stack(cluster, servers, database, cluster.url(delay_ms=delay_ms), folder / "log")
            for _ in range(workers):
                stack.add_worker()
            await asyncio.to_thread(stack.start_api)
            yield stack
        except BaseException:
            lines = (folder / "log").read_text(errors="replace").splitlines()
            sys.stderr.write("\n".join(["The last words of the stack:", *lines[-_LAST_WORDS:], ""]))
            raise
        finally:
            await database.close()
            cluster.clear()
