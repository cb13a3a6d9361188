"""The contestants of a race: Cistern and its peers behind one interface."""

# ruff: noqa: INP001 - benchmarks are not a package

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from arena import MAX_JOBS, Arena
from servers import HERE, MIB, environment_for, insert_volumes

from domain.jobs.model import JobMessage

#: A round is stuck after this many seconds without a finished job.
STALL_SECONDS: Final = 30.0
#: Number of messages dispatched at once before the race.
PAGE: Final = 500
#: Interval between counts of finished jobs; long, because each count reads the whole table.
POLL_SECONDS: Final = 0.4
VENVS: Final = {name: HERE.parent / f".venv-{name}" for name in ("peers", "peers-redis5")}
#: The virtual environment of each peer: arq and SAQ do not work with the redis-py version that taskiq requires.
MODULES: Final = {
    **dict.fromkeys(("arq", "saq"), "peers-redis5"),
    **dict.fromkeys(("taskiq", "dramatiq", "huey", "celery", "streaq", "procrastinate"), "peers"),
}
#: Peers that use Redis functions, which exist since Redis 7.
NEEDS_NEWER_REDIS: Final = {"streaq"}

# Counted from the end of the first tenth of the jobs, so that start-up time is not measured.
_RATE: Final = """
    SELECT count(*) FILTER (WHERE {at} > began) / extract(epoch FROM max({at}) - began)
    FROM {table}, (SELECT percentile_disc(0.1) WITHIN GROUP (ORDER BY {at}) AS began FROM {table}) AS start
    GROUP BY began"""


class Stuck(Exception):
    """No job was finished for ``STALL_SECONDS``."""


class PeerFailed(Exception):
    """A command of a peer's module failed."""


class Contestant(Protocol):
    """One system in one configuration."""

    @property
    def name(self) -> str:
        """Its name in the tables."""

    @property
    def settings(self) -> str:
        """The settings of its worker."""

    @property
    def keeps(self) -> str:
        """What it guarantees."""

    @property
    def loses(self) -> str:
        """What may be lost."""

    @property
    def expected_rate(self) -> int:
        """Approximate jobs per second, which determine the size of the first round."""

    async def prepare(self, jobs: int) -> None:
        """Fill the queue with ``jobs`` jobs, one row each, and remove everything else."""

    def worker(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Run a worker process for the duration of the block."""

    async def done(self) -> int:
        """Return the number of finished jobs."""

    async def rate(self) -> float:
        """Return the jobs per second.

        Raises:
            RuntimeError: a job has a wrong result.
        """


async def until_done(contestant: Contestant, jobs: int) -> None:
    """Wait until ``jobs`` jobs are finished.

    Raises:
        Stuck: no job was finished for ``STALL_SECONDS``.
    """
    done, progressed_at = 0, time.monotonic()
    while done < jobs:
        await asyncio.sleep(POLL_SECONDS)
        now = await contestant.done()
        if now > done:
            done, progressed_at = now, time.monotonic()
        if time.monotonic() - progressed_at > STALL_SECONDS:
            raise Stuck(f"{contestant.name}: {done} of {jobs} jobs are finished")


@dataclass(frozen=True)
class PeerInRace:
    """A peer, driven through the commands of its module in ``peers/``."""

    arena: Arena
    module: str
    name: str
    worker_command: Sequence[str]
    settings: str
    keeps: str
    loses: str
    expected_rate: int

    async def prepare(self, jobs: int) -> None:
        """Insert new rows, and enqueue a job for each."""
        self.arena.flush_redis()
        await self.insert_rows(jobs)
        await self.run("enqueue", self.name, str(jobs))

    async def insert_rows(self, count: int) -> None:
        """Replace all rows by new ones."""
        await self.arena.peers.execute("TRUNCATE work")
        await self.arena.peers.execute("INSERT INTO work (id) SELECT generate_series(1, $1::integer)", count)
        await self.arena.vacuum(self.arena.peers, "work")

    def worker(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Start the peer's worker."""
        return self.arena.process([self._python, *self.worker_command], self._environment)

    async def done(self) -> int:
        """Return the number of updated rows."""
        return int(await self.arena.peers.fetchval("SELECT count(done_at) FROM work"))

    async def rate(self) -> float:
        """Compute the rate from the times in the rows."""
        return float(await self.arena.peers.fetchval(_RATE.format(at="done_at", table="work")))

    async def run(self, *command: str) -> bytes:
        """Run a command of the peer's module, and return its output."""
        return await run_peer(self._python, self.module, *command, environment=self._environment)

    @property
    def _python(self) -> Path:
        return VENVS[MODULES[self.module]] / "bin" / "python"

    @property
    def _environment(self) -> dict[str, str]:
        redis_url = self.arena.newer_redis_url if self.module in NEEDS_NEWER_REDIS else self.arena.redis_url
        return {"PEERS_DATABASE_URL": self.arena.peers_url, "PEERS_REDIS_URL": redis_url or ""}


async def run_peer(python: Path, module: str, *command: str, environment: dict[str, str]) -> bytes:
    """Run a command of a peer's module in the peer's Python, and return its output."""
    process = await asyncio.create_subprocess_exec(
        python,
        *("-m", "peers", module, *command),
        env=os.environ | {"PYTHONPATH": str(HERE)} | environment,
        stdout=subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise PeerFailed(f"peers/{module}.py failed: {' '.join(command)}")
    return output


async def peers_of(arena: Arena) -> list[PeerInRace]:
    """Return all peers that can run here, in all configurations."""
    found = []
    for module, venv in MODULES.items():
        if module in NEEDS_NEWER_REDIS and arena.newer_redis_url is None:
            continue
        python = VENVS[venv] / "bin" / "python"
        # Importing a peer's module requires the URL of Redis.
        output = await run_peer(python, module, "about", environment={"PEERS_REDIS_URL": arena.redis_url})
        for about in json.loads(output):
            command = about.pop("worker")
            found.append(PeerInRace(arena=arena, module=module, worker_command=command, **about))
    return found


@dataclass(frozen=True)
class Cistern:
    """Cistern: expansions of volumes on null storage, in the state after `POST /volumes/ID/expand`."""

    arena: Arena
    backend: str = "null:"
    max_jobs: int = MAX_JOBS
    name: str = "Cistern"
    keeps: str = (
        "An accepted job survives crashes of workers, Redis and PostgreSQL; it takes effect exactly once (a fence on "
        "the storage, a lease of 15 s)."
    )
    loses: str = "No accepted job."
    expected_rate: int = 4000

    @property
    def settings(self) -> str:
        """The settings of its worker."""
        return f"CISTERN_MAX_JOBS={self.max_jobs}, CISTERN_LOG_LEVEL=error, all else at its default"

    async def prepare(self, jobs: int) -> None:
        """Insert expanding volumes, each acquired by a queued job, and dispatch a message for each."""
        self.arena.flush_redis()
        rows = self.arena.cistern
        await rows.execute("TRUNCATE jobs, job_items, volumes, snapshots, workers CASCADE")
        await rows.execute(_EXPANDING, jobs, MIB)
        await self.arena.vacuum(rows, "volumes", "jobs", "workers")
        messages = [JobMessage(row["id"], 0, "local") for row in await rows.fetch("SELECT id FROM jobs ORDER BY id")]
        queue = self.arena.services.queue
        for first in range(0, jobs, PAGE):
            await queue.dispatch(messages[first : first + PAGE])
        if await queue.missing(messages):
            raise RuntimeError("some messages did not reach Redis in time")

    async def volumes(self, count: int) -> list[str]:
        """Insert ``count`` available volumes and no jobs; return their ids."""
        await insert_volumes(self.arena.services.database, count)
        return [str(row["id"]) for row in await self.arena.cistern.fetch("SELECT id FROM volumes ORDER BY id")]

    def worker(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Start a worker."""
        return self.arena.process([sys.executable, "-m", "worker"], self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of its processes."""
        return environment_for(self.arena.services.settings, self.backend, max_jobs=self.max_jobs)

    async def done(self) -> int:
        """Return the number of ended jobs."""
        return int(await self.arena.cistern.fetchval("SELECT count(finished_at) FROM jobs"))

    async def rate(self) -> float:
        """Compute the rate from the times of the jobs, after checking that every job and volume is as expected."""
        mismatches = await self.arena.cistern.fetchval(_NOT_GROWN, MIB)
        if mismatches:
            raise RuntimeError(f"{mismatches} volumes or jobs do not have the expected result")
        return float(await self.arena.cistern.fetchval(_RATE.format(at="finished_at", table="jobs")))


_EXPANDING: Final = """
    WITH made AS (
        INSERT INTO volumes (id, name, backend, state, size, version, labels, job_id)
        SELECT uuidv7(), 'volume-' || n, 'local', 'expanding', $2, 2, '{}', uuidv7()
        FROM generate_series(1, $1::integer) AS n
        RETURNING id, job_id, version, size
    )
    INSERT INTO jobs (id, kind, status, version, params, volume_id, backend, attempt, max_attempts, epoch)
    SELECT job_id, 'volume.expand', 'queued', 1, jsonb_build_object('to_size', 2 * size, 'fence_version', version), id,
        'local', 0, 8, 0
    FROM made"""
_NOT_GROWN: Final = """
    SELECT count(*) FROM volumes LEFT JOIN jobs ON jobs.volume_id = volumes.id AND jobs.status = 'succeeded'
    WHERE jobs.id IS NULL OR volumes.state <> 'available' OR volumes.size <> 2 * $1::bigint"""
