"""A whole Cistern in processes of its own, with private servers that a test may crash."""

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
from tests.acceptance.judge import record_changes
from tests.acceptance.waiting import exit_code
from tests.support import keys, roles
from tests.support.databases import run
from tests.support.forked import Process
from tests.support.keys import BEARER
from tests.support.output_search import with_password

WORKERS = 3
_LOG_LINES = 200


@dataclass
class Stack:
    """PostgreSQL, Redis, an API, and several workers."""

    cluster: Cluster
    servers: EmbeddedServers
    database: Database
    storage: str
    log: Path
    address: str = ""
    workers: list[Process] = field(default_factory=list)

    def add_worker(self, **extra: str) -> Process:
        worker = self.cluster.start_worker(url=self.storage, log=self.log, **extra)
        self.workers.append(worker)
        return worker

    def kill(self, worker: Process) -> None:
        """Kill a worker as the out-of-memory killer does, and start another one in its place."""
        self.workers.remove(worker)
        worker.kill()
        worker.wait()
        self.add_worker()

    def client(self) -> httpx.AsyncClient:
        # Less than the API's 75 s, or a request may meet the server's close; but not much less: httpcore may close a
        # connection that expires while a request has just begun to use it.
        limits = httpx.Limits(max_connections=None, keepalive_expiry=30)
        return httpx.AsyncClient(base_url=f"{self.address}/api/v1", timeout=60, limits=limits, headers=BEARER)

    async def wait_until_registered(self) -> None:
        """Wait until every worker has registered: one that is still starting does not handle SIGTERM yet."""
        async with asyncio.timeout(60):
            while not {worker.pid for worker in self.workers} <= await self.registered_pids():
                await asyncio.sleep(0.05)

    async def replace(self, worker: Process, **extra: str) -> int:
        """Start a worker, then stop another one with SIGTERM, as a deploy does; return its exit status."""
        self.add_worker(**extra)
        await self.wait_until_registered()
        self.workers.remove(worker)
        worker.send_signal(signal.SIGTERM)
        return await exit_code(worker)

    async def check_and_repair(self) -> list[dict[str, Any]]:
        """Return the findings of `cistern check --repair`, and assert that it repaired all of them."""
        command = [sys.executable, "-c", "from api.cli.app import main; main()", "check", "--repair", "--json"]
        environment = (
            os.environ | self.cluster.environment() | {"CISTERN_BACKENDS": f'{{"local": "{self.cluster.url()}"}}'}
        )
        completed = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, env=environment, capture_output=True)
        assert completed.returncode == 0, completed
        return [json.loads(line) for line in completed.stdout.splitlines()]

    async def stop_workers(self) -> list[int]:
        """Stop every worker with SIGTERM, and return their exit statuses."""
        await self.wait_until_registered()
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        return [await exit_code(worker) for worker in self.workers]

    async def registered_pids(self) -> set[int]:
        async with self.database.transaction() as session:
            return set(await session.scalars(text("SELECT pid FROM workers")))

    def start_api(self) -> None:
        self.address = self.cluster.start_api(log=self.log)


@asynccontextmanager
async def running_stack(*, workers: int = WORKERS, delay_ms: int = 20, **settings: Any) -> AsyncIterator[Stack]:
    """Run a whole stack on servers of its own for the duration of the block."""
    with temporary_data_dir() as data_dir, EmbeddedServers(data_dir, durable=False) as servers:
        async with stack_on(servers, workers=workers, delay_ms=delay_ms, **settings) as stack:
            yield stack


@asynccontextmanager
async def stack_on(
    servers: EmbeddedServers, *, workers: int = WORKERS, delay_ms: int = 20, **settings: Any
) -> AsyncIterator[Stack]:
    """Run a whole stack on these servers, which are to be empty; its processes end with the block."""
    folder = Path(mkdtemp(prefix="storage-", dir=servers.data_dir))
    await asyncio.to_thread(migrate, servers.database_url)
    await asyncio.to_thread(roles.grant, servers.database_url)
    await asyncio.to_thread(run, servers.database_url, keys.INSERT)
    defaults = {"lease_seconds": 3, "heartbeat_timeout_seconds": 0.5, "retry_seconds": 0.1}
    urls = {
        "database_url": with_password(servers.database_url),
        "redis_url": with_password(servers.redis_url),
    }
    stack_settings = Settings(_env_file=None, **(defaults | urls | settings))
    cluster = Cluster(stack_settings, folder)
    database = Database(stack_settings.database_url)
    try:
        await record_changes(database)
        stack = Stack(cluster, servers, database, cluster.url(delay_ms=delay_ms), folder / "log")
        for _ in range(workers):
            stack.add_worker()
        await asyncio.to_thread(stack.start_api)
        yield stack
    except BaseException:
        lines = (folder / "log").read_text(errors="replace").splitlines()
        statuses = [process.poll() for process in cluster.processes]
        sys.stderr.write(f"The exit statuses of the stack's processes, None for those that run: {statuses}\n")
        sys.stderr.write("\n".join(["The last lines of the stack's log:", *lines[-_LOG_LINES:], ""]))
        raise
    finally:
        await database.close()
        cluster.clear()
