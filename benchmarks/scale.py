"""What a job costs, and what more workers add: the figures of docs/scale.md.

    python benchmarks/scale.py [--rounds N]

Each round fills the queue and runs 1, 2, 4 and 8 workers, with null storage and with storage that takes 20 ms. All
share the cores of this machine with PostgreSQL and Redis: with null storage, more workers soon only wait for these.
"""

# ruff: noqa: ASYNC110, INP001, T201 - not a package, its output is printed, and it waits for other processes

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Final

import psutil
import redis
from arena import MAX_JOBS, Arena, arena, cpu_by_program, program_of
from contestants import Cistern, until_done
from servers import private_settings

from domain.settings import Settings

WORKERS: Final = (1, 2, 4, 8)
JOBS_PER_ROUND: Final = {"null:": 20_000, "faulty+null:?delay_ms=20": 4_000}
SLOTS: Final = {"null:": MAX_JOBS, "faulty+null:?delay_ms=20": 10}
#: Costs are counted from when a tenth of the jobs is done, so that the start of the workers is not, to nine tenths.
FIRST, LAST = 0.1, 0.9
#: Long, because each count of the jobs that are done reads the whole table.
_POLL_SECONDS: Final = 0.2
COLUMNS: Final = (
    *("storage", "workers", "jobs/s", "open connections", "worker, us", "PostgreSQL, us", "Redis, us"),
    *("commits", "WAL, bytes", "Redis commands", "memory, MB"),
)


@dataclass(frozen=True)
class Usage:
    """What has been used up to a moment: CPU time in microseconds, by program; and counts of the servers."""

    done: int
    cpu: Counter[str]
    commits: int
    wal_bytes: int
    commands: int
    connections: int
    #: Resident memory of the largest worker.
    memory_bytes: int


@dataclass(frozen=True)
class Costs:
    """The rate of one round in jobs per second, its connections to PostgreSQL, memory, and costs per job."""

    rate: float
    connections: int
    memory_bytes: int
    worker_us: float
    postgres_us: float
    redis_us: float
    commits: float
    wal_bytes: float
    commands: float


async def usage(race_arena: Arena) -> Usage:
    """Ask the servers and the operating system."""
    workers = [one for one in psutil.Process().children(recursive=True) if program_of(one) == "worker"]
    memory_bytes = max((one.memory_info().rss for one in workers), default=0)
    row = await race_arena.cistern.fetchrow(
        "SELECT (SELECT count(finished_at) FROM jobs) AS done, xact_commit, pg_current_wal_lsn() - '0/0' AS wal,"
        " (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cistern') AS connections"
        " FROM pg_stat_database WHERE datname = current_database()"
    )
    with redis.Redis.from_url(race_arena.redis_url) as client:
        commands = client.info("stats")["total_commands_processed"]
    return Usage(
        row["done"], cpu_by_program(), row["xact_commit"], int(row["wal"]), commands, row["connections"], memory_bytes
    )


async def one_round(contestant: Cistern, jobs: int, workers: int) -> Costs:
    """Fill the queue, run the workers, and return what each job has cost."""
    await contestant.prepare(jobs)
    with ExitStack() as stack:
        for _ in range(workers):
            stack.enter_context(contestant.worker())
        while await contestant.done() < FIRST * jobs:
            await asyncio.sleep(_POLL_SECONDS)
        first = await usage(contestant.arena)
        polls = 0
        while await contestant.done() < LAST * jobs:
            polls += 1
            await asyncio.sleep(_POLL_SECONDS)
        last = await usage(contestant.arena)
        await until_done(contestant, jobs)
    done = last.done - first.done
    return Costs(
        rate=await contestant.rate(),
        connections=last.connections,
        memory_bytes=last.memory_bytes,
        worker_us=(last.cpu["worker"] - first.cpu["worker"]) / done,
        postgres_us=(last.cpu["postgres"] - first.cpu["postgres"]) / done,
        redis_us=(last.cpu["redis"] - first.cpu["redis"]) / done,
        commits=(last.commits - first.commits - polls) / done,
        wal_bytes=(last.wal_bytes - first.wal_bytes) / done,
        commands=(last.commands - first.commands) / done,
    )


def line(backend: str, workers: int, rounds: Sequence[Costs]) -> str:
    """Return a row of the table, with the medians of the rounds."""

    def middle(name: str) -> float:
        return float(median(getattr(costs, name) for costs in rounds))

    times = [f"{middle(name):.0f}" for name in ("worker_us", "postgres_us", "redis_us")]
    counts = [f"{middle('commits'):.3f}", f"{middle('wal_bytes'):,.0f}", f"{middle('commands'):.1f}"]
    counts.append(f"{middle('memory_bytes') / 1e6:.0f}")
    cells = [backend, workers, f"{middle('rate'):,.0f}", f"{middle('connections'):.0f}", *times, *counts]
    return f"| {' | '.join(map(str, cells))} |"


async def measure(settings: Settings, rounds: int) -> None:
    """Run all rounds, and print the table."""
    results: dict[tuple[str, int], list[Costs]] = {(backend, n): [] for backend in JOBS_PER_ROUND for n in WORKERS}
    async with arena(settings) as race_arena:
        for _ in range(rounds):
            for (backend, workers), costs in results.items():
                jobs = JOBS_PER_ROUND[backend] * (1 if backend == "null:" else workers)
                costs.append(await one_round(Cistern(race_arena, backend, SLOTS[backend]), jobs, workers))
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for (backend, workers), costs in results.items():
        print(line(backend, workers, costs))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What a job costs, and what more workers add.")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with private_settings(max_jobs=MAX_JOBS) as settings:
        asyncio.run(measure(settings, rounds))


if __name__ == "__main__":
    main()
