"""Seconds from SIGKILL of a worker until another one claims its job, at default settings.

    python benchmarks/rescue.py [--rounds N]

Each round has four workers that hold one job each, and an idle one. The four are killed at random times, and the clock
runs until the job is claimed again. Storage work is not measured.

How to read it: a worker renews its leases every 5 s, so 10 to 15 s of the lease are left when it dies; then the next
sweep of any worker (every 2 s) requeues the job and dispatches it.
"""

# ruff: noqa: ASYNC110, INP001, T201 - not a package, its output is printed, and it waits for other processes

import argparse
import asyncio
import random
import subprocess
import time
from contextlib import ExitStack
from statistics import median
from uuid import UUID

from servers import MIB, private_settings, worker
from sqlalchemy import select

from domain.db.base import DEFAULT_PROJECT
from domain.jobs.model import Worker
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.service import NewVolume

VICTIMS = 4
#: SLOW takes longer than the benchmark, so that the victims hold trescuer jobs.
SLOW, QUICK = "faulty+null:?delay_ms=3600000", "null:"


def main() -> None:
    """Measure, and print the median and the maximum."""
    parser = argparse.ArgumentParser(description="Time from kill -9 of a worker to the next claim of its job.")
    parser.add_argument("--rounds", type=int, default=5, help=f"number of rounds, with {VICTIMS} kills each")
    rounds = parser.parse_args().rounds
    with private_settings() as settings:
        seconds = asyncio.run(measure(settings, rounds))
    print(f"{len(seconds)} kills: median {median(seconds):.1f} s, maximum {max(seconds):.1f} s")
    print(f"lease {settings.lease_seconds:g} s, a sweep every {settings.sweep_seconds:g} s")


async def measure(settings: Settings, rounds: int) -> list[float]:
    """Return the seconds from each kill to the next claim."""
    async with open_services(settings, adopt=True) as services:
        return [seconds for number in range(rounds) for seconds in await one_round(services, number)]


async def one_round(services: Services, number: int) -> list[float]:
    """Let each worker claim a job, kill them at random times, and time each job."""
    names = [f"round-{number}-{victim}" for victim in range(VICTIMS)]
    with ExitStack() as workers:
        victims = {
            process.pid: process
            for process in (workers.enter_context(worker(services.settings, SLOW, max_jobs=1)) for _ in names)
        }
        jobs = [(await services.volumes.request_create(NewVolume(name, size=MIB))).id for name in names]
        holders = await wait_for_holders(services, jobs)
        rescuer = workers.enter_context(worker(services.settings, QUICK))
        while rescuer.pid not in (await pids(services)).values():
            await asyncio.sleep(0.1)
        return await asyncio.gather(*(kill_and_time(services, job, victims[pid]) for job, pid in holders.items()))


async def kill_and_time(services: Services, job_id: UUID, victim: subprocess.Popen[bytes]) -> float:
    """Kill a worker at a random time between two heartbeats; return the seconds until its job is claimed again."""
    await asyncio.sleep(random.uniform(0, services.settings.lease_seconds / 3))  # noqa: S311
    victim.kill()
    killed = time.monotonic()
    while (await services.jobs.get(job_id, project_id=DEFAULT_PROJECT)).attempt < 2:  # noqa: PLR2004 (the second claim)
        await asyncio.sleep(0.01)
    return time.monotonic() - killed


async def wait_for_holders(services: Services, job_ids: list[UUID]) -> dict[UUID, int]:
    """Wait until all these jobs are running, and return the process that holds each."""
    while True:
        jobs = [await services.jobs.get(job_id, project_id=DEFAULT_PROJECT) for job_id in job_ids]
        processes = await pids(services)
        if all(job.worker_id in processes for job in jobs):
            return {job.id: processes[job.worker_id] for job in jobs if job.worker_id}
        await asyncio.sleep(0.1)


async def pids(services: Services) -> dict[UUID, int]:
    """Return the process ids of all registered workers."""
    async with services.database.transaction() as session:
        return {row.id: row.pid for row in await session.scalars(select(Worker))}


if __name__ == "__main__":
    main()
