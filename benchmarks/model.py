"""Simulate more workers than this machine can run, for docs/scale.md.

    python benchmarks/model.py        takes a minute

The CPU time that PostgreSQL takes for claims and settlements is measured, of one job and of a hundred at once. The
other times are assumed. The workers always find jobs; how many each fetches is decided by the code of the worker.
Locks, disks, Redis, and the CPU time of the workers are left out.
"""

# ruff: noqa: INP001, T201 - not a package, and its output is printed

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Final

from arena import arena, cpu_by_program
from buffers import Batch, claim, settle
from contestants import Cistern
from servers import private_settings

from domain.db.database import Database
from domain.settings import Settings
from worker.slots import Load, Slots

#: The sizes of batches whose costs are measured, and of how many jobs in all.
SMALL, LARGE = 1, 100
JOBS: Final = {SMALL: 2_000, LARGE: 20_000}
SLOTS: Final = 10
STORAGE_SECONDS: Final = 0.02
#: The shortest and the longest operation, in shares of the mean. Where the storage is even, the jobs of a batch end
#: together, and form the next batch.
SPREADS: Final = {"even": (1.0, 1.0), "uneven": (0.5, 1.5)}
#: Assumed: from the end of a job to the fetch or the settlement that follows. Jobs that end within it share a batch.
TICK_SECONDS: Final = 0.0005
#: Assumed: a fetch from Redis.
FETCH_SECONDS: Final = 0.001
#: Assumed: what a statement takes besides PostgreSQL's CPU time, such as the network and the flush of the WAL.
ROUND_TRIP_SECONDS: Final = 0.002
SIMULATED_SECONDS: Final = 5.0
SCENARIOS: Final = [(2, n) for n in (1, 2, 4, 8, 16, 32)] + [(8, n) for n in (8, 32, 64, 100)] + [(32, 100), (32, 300)]


@dataclass(frozen=True)
class Cost:
    """The CPU time of PostgreSQL for one batch of jobs, in seconds."""

    per_batch: float
    per_job: float

    def of(self, jobs: int) -> float:
        """Return the seconds for a batch of this size."""
        return self.per_batch + self.per_job * jobs


@dataclass(frozen=True)
class Costs:
    """The costs of a claim, and of a settlement with its effects."""

    claim: Cost
    settlement: Cost


async def claim_batch(database: Database, batch: Batch) -> None:
    """Claim jobs in a statement that commits by itself, as a worker does."""
    async with database.autocommit() as connection:
        await claim(connection, batch)


async def settle_batch(database: Database, batch: Batch) -> None:
    """Settle jobs and release their volumes in one transaction, as a worker does."""
    async with database.transaction() as session:
        await settle(session, batch)


async def measure(settings: Settings) -> Costs:
    """Measure what claims and settlements cost."""
    seconds: dict[str, list[float]] = {"claim": [], "settle": []}
    async with arena(settings) as race_arena:
        for at_once, jobs in JOBS.items():
            await Cistern(race_arena).prepare(jobs)
            rows = await race_arena.cistern.fetch("SELECT id, volume_id FROM jobs ORDER BY id")
            batches = [
                [(row["id"], row["volume_id"]) for row in rows[n : n + at_once]] for n in range(0, jobs, at_once)
            ]
            for name, step in (("claim", claim_batch), ("settle", settle_batch)):
                before = cpu_by_program()["postgres"]
                for batch in batches:
                    await step(race_arena.services.database, batch)
                used = cpu_by_program()["postgres"] - before
                seconds[name].append(used / 1e6 / len(batches))
    return Costs(*(fitted(*values) for values in seconds.values()))


def fitted(of_small: float, of_large: float) -> Cost:
    """Return the line through both measurements, in seconds."""
    per_job = (of_large - of_small) / (LARGE - SMALL)
    return Cost(of_small - per_job * SMALL, per_job)


class Simulation:
    """Workers and a PostgreSQL, in simulated time."""

    def __init__(self, costs: Costs, *, cores: int, workers: int, spread: tuple[float, float]) -> None:
        self.costs = costs
        self._spread = spread
        self._random = Random(1)  # noqa: S311 (not a secret)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._idle_cores = cores
        self._statements: deque[tuple[float, Callable[[], None]]] = deque()
        self.now = 0.0
        self.workers = [SimulatedWorker(self) for _ in range(workers)]
        self.busy_core_seconds = 0.0
        self.batches = self.settled = 0

    def run(self) -> Sequence[str]:
        """Simulate; return jobs per second, their share of what the slots allow, commits per job, and cores used."""
        for worker in self.workers:
            self.after(self._random.uniform(0, STORAGE_SECONDS), worker.wake)
        while self.now < SIMULATED_SECONDS:
            self.now, _, event = heapq.heappop(self._events)
            event()
        rate, allowed = self.settled / self.now, len(self.workers) * SLOTS / STORAGE_SECONDS
        commits, cores = self.batches / self.settled, self.busy_core_seconds / self.now
        return f"{rate:,.0f}", f"{rate / allowed:.2f}", f"{commits:.2f}", f"{cores:.1f}"

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Call ``event`` when this number of simulated seconds has passed."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def after_storage_work(self, event: Callable[[], None]) -> None:
        """Call ``event`` when the storage work of one job has ended."""
        self.after(STORAGE_SECONDS * self._random.uniform(*self._spread), event)

    def execute(self, seconds: float, event: Callable[[], None]) -> None:
        """Use a core of PostgreSQL for this number of seconds; call ``event`` when the worker has the answer."""
        self.batches += 1
        self._statements.append((seconds, event))
        self._next_statement()

    def _next_statement(self) -> None:
        if self._statements and self._idle_cores:
            self._idle_cores -= 1
            seconds, event = self._statements.popleft()
            self.busy_core_seconds += seconds
            self.after(seconds, self._statement_done)
            self.after(seconds + ROUND_TRIP_SECONDS, event)

    def _statement_done(self) -> None:
        self._idle_cores += 1
        self._next_statement()


class SimulatedWorker:
    """A worker, reduced to its fetches, claims and settlements. The real code decides how many jobs it fetches."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._slots = Slots(SLOTS, clock=lambda: simulation.now)
        self._load = Load(self._slots)
        #: Jobs that have no slot yet, that run, and that are to be settled.
        self._waiting = self._running = self._ended = 0
        self._fetching = False
        self._settling = False

    def wake(self) -> None:
        """Start a fetch and a settlement, each a tick from now and unless there is nothing to do or one in progress."""
        if self._load.capacity and not self._fetching:
            self._fetching = True
            self._simulation.after(TICK_SECONDS, self._fetch)
        if self._ended and not self._settling:
            self._settling = True
            self._simulation.after(TICK_SECONDS, self._settle)

    def _fetch(self) -> None:
        jobs = self._load.capacity
        self._load.add(jobs)
        self._simulation.after(FETCH_SECONDS, lambda: self._fetched(jobs))

    def _fetched(self, jobs: int) -> None:
        self._fetching = False
        if jobs:
            self._simulation.execute(self._simulation.costs.claim.of(jobs), lambda: self._claimed(jobs))
        self.wake()

    def _claimed(self, jobs: int) -> None:
        self._waiting += jobs
        self._start_jobs()

    def _start_jobs(self) -> None:
        while self._waiting and self._running < SLOTS:
            self._waiting -= 1
            self._running += 1
            self._simulation.after_storage_work(self._end_job)

    def _end_job(self) -> None:
        self._slots.release()
        self._load.end_work()
        self._running -= 1
        self._ended += 1
        self._start_jobs()
        self.wake()

    def _settle(self) -> None:
        jobs, self._ended = self._ended, 0
        self._simulation.execute(self._simulation.costs.settlement.of(jobs), lambda: self._settled(jobs))

    def _settled(self, jobs: int) -> None:
        self._settling = False
        self._simulation.settled += jobs
        for _ in range(jobs):
            self._load.settle()
        self.wake()


def main() -> None:
    """Measure, simulate, and print."""
    with private_settings() as settings:
        costs = asyncio.run(measure(settings))
    for name, cost in vars(costs).items():
        print(f"a {name}: {1e6 * cost.per_batch:.0f} us per batch and {1e6 * cost.per_job:.0f} us per job")
    names = [f"{name}, {spread}" for spread in SPREADS for name in ("jobs/s", "of the slots", "commits", "cores used")]
    print(f"\n| cores | workers | {' | '.join(names)} |\n{'|---' * (2 + len(names))}|")
    for cores, workers in SCENARIOS:
        runs = [Simulation(costs, cores=cores, workers=workers, spread=spread).run() for spread in SPREADS.values()]
        print(f"| {cores} | {workers} | {' | '.join(cell for run in runs for cell in run)} |")


if __name__ == "__main__":
    main()
