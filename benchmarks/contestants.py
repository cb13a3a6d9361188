"""Who runs in a race: Cistern and its peers, as far as a race has to tell them apart."""

# ruff: noqa: INP001 - benchmarks are no package

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

from arena import HERE, MAX_JOBS, Arena
from stage import MIB, fill, told

from domain.jobs.model import Dispatch

#: How long a round may go on without a single job being done.
PATIENCE: Final = 30.0
#: So many jobs are rung at once that are there before the race.
PAGE: Final = 500
#: How often it is asked how many are done: seldom, for every look reads the whole table.
LOOK_SECONDS: Final = 0.4
VENVS: Final = {name: HERE.parent / f".venv-{name}" for name in ("peers", "peers-redis5")}
#: Which Python has it: arq and SAQ cannot do with the version of redis-py that taskiq must have.
MODULES: Final = {
    **dict.fromkeys(("arq", "saq"), "peers-redis5"),
    **dict.fromkeys(("taskiq", "dramatiq", "huey", "celery", "streaq", "procrastinate"), "peers"),
}
#: Who uses functions, which Redis has had since its version 7.
NEW_REDIS: Final = {"streaq"}

# From the tenth of all jobs on, so that a start counts for nobody.
_RATE: Final = """
    SELECT count(*) FILTER (WHERE {at} > began) / extract(epoch FROM max({at}) - began)
    FROM {table}, (SELECT percentile_disc(0.1) WITHIN GROUP (ORDER BY {at}) AS began FROM {table}) AS start
    GROUP BY began"""


class Stuck(Exception):
    """No job was done for half a minute."""


class Unanswered(Exception):
    """A peer's file failed."""


class Contestant(Protocol):
    """One system in one of the ways in which it can be run."""

    @property
    def name(self) -> str:
        """How tables call it."""

    @property
    def settings(self) -> str:
        """How its worker is set."""

    @property
    def keeps(self) -> str:
        """What it guarantees."""

    @property
    def loses(self) -> str:
        """What it does not."""

    @property
    def pace(self) -> int:
        """About how many jobs it does in a second: what its first round is planned by."""

    async def prepare(self, jobs: int) -> None:
        """Have so many jobs in the queue, of one row each, and nothing else."""

    def worker(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Have a worker process as long as the block lasts."""

    async def done(self) -> int:
        """How many jobs are done."""

    async def rate(self) -> float:
        """How many jobs were done in a second; raises if any was not done as it should have been."""


async def until_done(contestant: Contestant, jobs: int) -> None:
    """Wait until so many jobs are done.

    Raises:
        Stuck: there is no progress.
    """
    done, seen = 0, time.monotonic()
    while done < jobs:
        await asyncio.sleep(LOOK_SECONDS)
        now = await contestant.done()
        if now > done:
            done, seen = now, time.monotonic()
        if time.monotonic() - seen > PATIENCE:
            raise Stuck(f"{contestant.name}: {done} of {jobs} jobs are done")


@dataclass(frozen=True)
class PeerInRace:
    """A peer, whose file in ``peers/`` is asked for everything that is its own."""

    arena: Arena
    module: str
    name: str
    worker_command: Sequence[str]
    settings: str
    keeps: str
    loses: str
    pace: int

    async def prepare(self, jobs: int) -> None:
        """Have fresh rows, and a message for each."""
        self.arena.flush_redis()
        await self.rows(jobs)
        await self.ask("enqueue", self.name, str(jobs))

    async def rows(self, count: int) -> None:
        """Have rows that nobody has touched."""
        await self.arena.peers.execute("TRUNCATE work")
        await self.arena.peers.execute("INSERT INTO work (id) SELECT generate_series(1, $1::integer)", count)
        await self.arena.vacuum(self.arena.peers, "work")

    def worker(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Start the peer's worker."""
        return self.arena.process([self._python, *self.worker_command], self._environment)

    async def done(self) -> int:
        """Count the rows that were updated."""
        return int(await self.arena.peers.fetchval("SELECT count(done_at) FROM work"))

    async def rate(self) -> float:
        """Go by the rows' own times."""
        return float(await self.arena.peers.fetchval(_RATE.format(at="done_at", table="work")))

    async def ask(self, *question: str) -> bytes:
        """Have the peer's file answer a question."""
        return await asked(self._python, self.module, *question, environment=self._environment)

    @property
    def _python(self) -> Path:
        return VENVS[MODULES[self.module]] / "bin" / "python"

    @property
    def _environment(self) -> dict[str, str]:
        redis_url = self.arena.newer_redis_url if self.module in NEW_REDIS else self.arena.redis_url
        return {"PEERS_DATABASE_URL": self.arena.peers_url, "PEERS_REDIS_URL": redis_url or ""}


async def asked(python: Path, module: str, *question: str, environment: dict[str, str]) -> bytes:
    """Ask a peer's file in its own Python; what it printed."""
    process = await asyncio.create_subprocess_exec(
        python,
        *("-m", "peers", module, *question),
        env=os.environ | {"PYTHONPATH": str(HERE)} | environment,
        stdout=subprocess.PIPE,
    )
    answer, _ = await process.communicate()
    if process.returncode != 0:
        raise Unanswered(f"peers/{module}.py does not answer {' '.join(question)}")
    return answer


async def peers_of(arena: Arena) -> list[PeerInRace]:
    """All peers that can run here, in all of their ways."""
    found = []
    for module, venv in MODULES.items():
        if module in NEW_REDIS and arena.newer_redis_url is None:
            continue
        python = VENVS[venv] / "bin" / "python"
        # A peer wants to be told where Redis is before it says anything.
        answer = await asked(python, module, "about", environment={"PEERS_REDIS_URL": arena.redis_url})
        for about in json.loads(answer):
            command = about.pop("worker")
            found.append(PeerInRace(arena=arena, module=module, worker_command=command, **about))
    return found


@dataclass(frozen=True)
class Cistern:
    """Cistern itself: expansions of volumes on null storage, as `POST /volumes/ID/expand` leaves them."""

    arena: Arena
    backend: str = "null:"
    max_jobs: int = MAX_JOBS
    name: str = "Cistern"
    keeps: str = (
        "A job that was accepted is never lost, through the death of workers, of Redis and of PostgreSQL; its effect "
        "happens exactly once (a fence on the storage, a lease of 15 s)."
    )
    loses: str = "Nothing that was accepted."
    pace: int = 4000

    @property
    def settings(self) -> str:
        """How its worker is set."""
        return f"CISTERN_MAX_JOBS={self.max_jobs}, CISTERN_LOG_LEVEL=error, all else by default"

    async def prepare(self, jobs: int) -> None:
        """Have volumes that are expanding, each in the hands of a queued job, and a message for each."""
        self.arena.flush_redis()
        rows = self.arena.cistern
        await rows.execute("TRUNCATE jobs, job_items, volumes, snapshots, workers CASCADE")
        await rows.execute(_EXPANDING, jobs, MIB)
        await self.arena.vacuum(rows, "volumes", "jobs", "workers")
        dispatches = [Dispatch(row["id"], 0) for row in await rows.fetch("SELECT id FROM jobs ORDER BY id")]
        queue = self.arena.services.queue
        for first in range(0, jobs, PAGE):
            await queue.dispatch(dispatches[first : first + PAGE])
        if await queue.missing(dispatches):
            raise RuntimeError("Redis took too long over some of the messages")

    async def volumes(self, count: int) -> list[str]:
        """Have so many volumes that are available, and no jobs; their ids."""
        await fill(self.arena.services.database, count)
        return [str(row["id"]) for row in await self.arena.cistern.fetch("SELECT id FROM volumes ORDER BY id")]

    def worker(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Start a worker."""
        return self.arena.process([sys.executable, "-m", "worker"], self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """What its processes are told."""
        return told(self.arena.services.settings, self.backend, max_jobs=self.max_jobs)

    async def done(self) -> int:
        """Count the jobs that have ended."""
        return int(await self.arena.cistern.fetchval("SELECT count(finished_at) FROM jobs"))

    async def rate(self) -> float:
        """Go by the jobs' own times, if all have succeeded and all volumes are what was wanted."""
        wrong = await self.arena.cistern.fetchval(_NOT_GROWN, MIB)
        if wrong:
            raise RuntimeError(f"{wrong} volumes are not as they were to become")
        return float(await self.arena.cistern.fetchval(_RATE.format(at="finished_at", table="jobs")))


_EXPANDING: Final = """
    WITH made AS (
        INSERT INTO volumes (id, name, backend, state, size, version, labels, job_id)
        SELECT uuidv7(), 'volume-' || n, 'local', 'expanding', $2, 2, '{}', uuidv7()
        FROM generate_series(1, $1::integer) AS n
        RETURNING id, job_id, version, size
    )
    INSERT INTO jobs (id, kind, status, version, params, volume_id, backend, attempt, max_attempts, epoch)
    SELECT job_id, 'volume.expand', 'queued', 1, jsonb_build_object('to_size', 2 * size, 'fence', version), id, 'local',
        0, 8, 0
    FROM made"""
_NOT_GROWN: Final = """
    SELECT count(*) FROM volumes LEFT JOIN jobs ON jobs.volume_id = volumes.id AND jobs.status = 'succeeded'
    WHERE jobs.id IS NULL OR volumes.state <> 'available' OR volumes.size <> 2 * $1::bigint"""
