"""The peers as contestants, each driven through the commands of its module in `peers/`."""

# ruff: noqa: INP001, T201 - not a package, and its output is printed

import asyncio
import json
import os
import subprocess
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from arena import Arena
from contestants import RATE
from runtimes import RUNTIMES, Runtime
from servers import HERE

#: Peers that use Redis functions, which exist since Redis 7.
NEEDS_NEWER_REDIS: Final = {"streaq"}


class PeerFailed(Exception):
    """A command of a peer's module failed."""


@dataclass(frozen=True)
class PeerInRace:
    """A peer, driven through the commands of its module in ``peers/``."""

    arena: Arena
    runtime: Runtime
    module: str
    name: str
    worker_command: Sequence[str]
    settings: str
    keeps: str
    loses: str
    expected_rate: int
    #: False for the lower bound of the cost, whose worker updates all rows that it finds.
    has_queue: bool

    async def prepare(self, jobs: int) -> None:
        """Insert new rows, and enqueue a job for each."""
        self.arena.flush_redis()
        await self.insert_rows(jobs)
        await self.run("enqueue", self.name, str(jobs))
        # All tables: the queues of some peers are in PostgreSQL too.
        await self.arena.vacuum(self.arena.peers)

    async def insert_rows(self, count: int) -> None:
        """Replace all rows by new ones."""
        await self.arena.peers.execute("TRUNCATE work")
        await self.arena.peers.execute("INSERT INTO work (id) SELECT generate_series(1, $1::integer)", count)
        await self.arena.vacuum(self.arena.peers, "work")

    def worker(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Start the peer's worker."""
        return self.arena.process([self.runtime.interpreter, *self.worker_command], self._environment)

    async def done(self) -> int:
        """Return the number of updated rows."""
        return int(await self.arena.peers.fetchval("SELECT count(done_at) FROM work"))

    async def rate(self) -> float:
        """Compute the rate from the times in the rows."""
        return float(await self.arena.peers.fetchval(RATE.format(at="done_at", table="work")))

    async def run(self, *command: str) -> bytes:
        """Run a command of the peer's module, and return its output."""
        return await run_peer(self.runtime, self.module, *command, environment=self._environment)

    @property
    def _environment(self) -> dict[str, str]:
        redis_url = self.arena.newer_redis_url if self.module in NEEDS_NEWER_REDIS else self.arena.redis_url
        return {"PEERS_DATABASE_URL": self.arena.peers_url, "PEERS_REDIS_URL": redis_url or ""}


async def run_peer(runtime: Runtime, module: str, *command: str, environment: dict[str, str]) -> bytes:
    """Run a command of a peer's module, and return its output."""
    process = await asyncio.create_subprocess_exec(
        runtime.interpreter,
        *(*runtime.entry, module, *command),
        env=os.environ | {"PYTHONPATH": str(HERE)} | environment,
        stdout=subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise PeerFailed(f"the module {module} in peers/ failed: {' '.join(command)}")
    return output


async def peers_of(arena: Arena, only: Collection[str]) -> list[PeerInRace]:
    """Return the peers that can run here, in all configurations; ``only`` names their modules, if it is not empty."""
    found = []
    for runtime in RUNTIMES:
        modules = [module for module in runtime.modules if not only or module in only]
        if modules and not runtime.is_installed:
            print(f"  left out, because .venv-{runtime.name} is not installed: {', '.join(modules)}", flush=True)
            continue
        for module in modules:
            found += await _configurations(arena, runtime, module)
    return found


async def _configurations(arena: Arena, runtime: Runtime, module: str) -> list[PeerInRace]:
    if module in NEEDS_NEWER_REDIS and arena.newer_redis_url is None:
        print(f"  left out, because there is no Redis 7: {module}", flush=True)
        return []
    # Importing a peer's module requires the URLs of the servers.
    environment = {"PEERS_DATABASE_URL": arena.peers_url, "PEERS_REDIS_URL": arena.redis_url}
    descriptions = json.loads(await run_peer(runtime, module, "about", environment=environment))
    return [
        PeerInRace(arena, runtime, module, worker_command=description.pop("worker"), **description)
        for description in descriptions
    ]
