"""How long a job stands still when its worker is killed with -9, at default settings.

    python benchmarks/rescue.py [--rounds N]

Each round has four workers that each hold one job, and one with nothing to do. The four are killed at moments of
their own, and the clock runs until the job is claimed again. It does not measure the storage work.

How to read it: a worker extends its leases every 5 s, so between 10 and 15 s of the lease are left when it dies; then
somebody's next round (every 2 s) puts the job back into the queue, and rings.
"""

# ruff: noqa: ASYNC110, INP001, T201 - no package, it is there to print, and what it waits for are other processes

import argparse
import asyncio
import random
import subprocess
import time
from contextlib import ExitStack
from statistics import median
from uuid import UUID

from sqlalchemy import select
from stage import MIB, private_settings, worker

from domain.jobs.model import Worker
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.service import NewVolume

VICTIMS = 4
#: Their storage work would take longer than the benchmark.
SLOW, QUICK = "faulty+null:?delay_ms=3600000", "null:"


def main() -> None:
    """Measure, and print the median and the worst."""
    parser = argparse.ArgumentParser(description="Time from kill -9 of a worker to its job being at work again.")
    parser.add_argument("--rounds", type=int, default=5, help=f"of {VICTIMS} kills each")
    rounds = parser.parse_args().rounds
    with private_settings() as settings:
        seconds = asyncio.run(measure(settings, rounds))
    print(f"{len(seconds)} kills: median {median(seconds):.1f} s, worst {max(seconds):.1f} s")
    print(f"lease {settings.lease_seconds:g} s, a round every {settings.sweep_seconds:g} s")


async def measure(settings: Settings, rounds: int) -> list[float]:
    """Seconds that jobs stood still, of all kills."""
    async with open_services(settings) as services:
        return [seconds for number in range(rounds) for seconds in await one_round(services, number)]


async def one_round(services: Services, number: int) -> list[float]:
    """Let workers take a job each, kill them one by one, and time each of the jobs."""
    names = [f"round-{number}-{victim}" for victim in range(VICTIMS)]
    with ExitStack() as workers:
        victims = {
            process.pid: process
            for process in (workers.enter_context(worker(services.settings, SLOW, max_jobs=1)) for _ in names)
        }
        jobs = [(await services.volumes.request_create(NewVolume(name, size=MIB))).id for name in names]
        holders = await holding(services, jobs)
        heir = workers.enter_context(worker(services.settings, QUICK))
        while heir.pid not in (await pids(services)).values():
            await asyncio.sleep(0.1)
        return await asyncio.gather(*(bereave(services, job, victims[pid]) for job, pid in holders.items()))


async def bereave(services: Services, job_id: UUID, victim: subprocess.Popen[bytes]) -> float:
    """Kill a worker at some moment between two heartbeats; seconds until its job is claimed again."""
    await asyncio.sleep(random.uniform(0, services.settings.lease_seconds / 3))  # noqa: S311
    victim.kill()
    killed = time.monotonic()
    while (await services.jobs.get(job_id)).attempt < 2:  # noqa: PLR2004 (the second claim)
        await asyncio.sleep(0.01)
    return time.monotonic() - killed


async def holding(services: Services, job_ids: list[UUID]) -> dict[UUID, int]:
    """Which process holds each of these jobs, once all of them are at work."""
    while True:
        jobs = [await services.jobs.get(job_id) for job_id in job_ids]
        processes = await pids(services)
        if all(job.worker_id in processes for job in jobs):
            return {job.id: processes[job.worker_id] for job in jobs if job.worker_id}
        await asyncio.sleep(0.1)


async def pids(services: Services) -> dict[UUID, int]:
    """The processes of all workers that have ever beaten."""
    async with services.database.transaction() as session:
        return {row.id: row.pid for row in await session.scalars(select(Worker))}


if __name__ == "__main__":
    main()
