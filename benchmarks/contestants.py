"""The contestants of a race behind one interface, and Cistern as one of them."""

# ruff: noqa: INP001 - benchmarks are not a package

import asyncio
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from arena import MAX_JOBS, Arena
from servers import MIB, environment_for, insert_volumes

from domain.jobs.model import JobMessage

#: A round is stuck after this many seconds without a finished job.
STALL_SECONDS: Final = 30.0
#: Number of messages dispatched at once before the race.
PAGE: Final = 500
#: Interval between counts of finished jobs; long, because each count reads the whole table.
POLL_SECONDS: Final = 0.4

# Counted from the end of the first tenth of the jobs, so that start-up time is not measured.
RATE: Final = """
    SELECT count(*) FILTER (WHERE {at} > began) / extract(epoch FROM max({at}) - began)
    FROM {table}, (SELECT percentile_disc(0.1) WITHIN GROUP (ORDER BY {at}) AS began FROM {table}) AS start
    GROUP BY began"""


class Stuck(Exception):
    """No job was finished for ``STALL_SECONDS``."""


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
        return float(await self.arena.cistern.fetchval(RATE.format(at="finished_at", table="jobs")))


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
