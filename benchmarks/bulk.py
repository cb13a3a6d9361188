"""The cost of a bulk expansion, compared with a naive one and with a single UPDATE, the lower bound of PostgreSQL.

    make bench-bulk        or, one part of it: python benchmarks/bulk.py race|replicas|memory|fairness|cancelling

All parts run in turn, on private servers. Machines are noisy: compare only ratios within one run.
"""

# ruff: noqa: INP001, T201 - not a package, and its output is printed

import argparse
import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import UUID

import httpx
from servers import BEARER, MIB, api, insert_volumes, private_settings, wait_for_workers, worker
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.bulk.requests import Selection
from domain.db.base import DEFAULT_PROJECT
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.model import Volume

MAX_CONCURRENT: Final = 64
GROWTH: Final = GrowthPolicy(by=MIB)

#: The number of volumes, and seconds.
Measured = tuple[int, float]
Method = Callable[[Services, int], Awaitable[Measured]]


def main() -> None:
    """Run the selected parts, or all of them, and print their results."""
    parser = argparse.ArgumentParser(description="Measure the cost of a bulk expansion.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; default: all")
    parser.add_argument("--volumes", type=int, default=100_000, help="number of volumes of the part race")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"unknown part: {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    for part in arguments.parts or PARTS:
        with private_settings(max_concurrent=1000) as settings:
            asyncio.run(PARTS[part](settings, arguments.volumes))


# --- (a) a session for each volume, (b) Cistern, (c) one statement -------------------------------------------


async def race(settings: Settings, volumes: int) -> None:
    """Expand the same volumes by three methods."""
    async with open_services(settings, adopt=True) as services, services.watcher.watching():
        rates = {name: await _rate(services, volumes, method) for name, method in METHODS.items()}
    naive = rates["a session for each volume"]
    print(f"\n{volumes} volumes, rows only, {MAX_CONCURRENT} at once, one worker process\n")
    print("| method | volumes/s | ratio |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / naive:.1f} |")


async def _rate(services: Services, volumes: int, method: Method) -> float:
    rounds = []
    for _ in range(3):
        await insert_volumes(services.database, volumes)
        grown, seconds = await method(services, volumes)
        rounds.append(grown / seconds)
    return median(rounds)


async def _naive(services: Services, volumes: int) -> Measured:
    """Expand as a textbook does: TaskGroup, semaphore, a session and a commit per volume; nothing survives a crash.

    Only a tenth of the volumes: the time per volume is constant, and all of them would take minutes.
    """
    engine = create_async_engine(services.settings.database_url, pool_size=MAX_CONCURRENT)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def grow(volume_id: object) -> None:
        async with slots, sessions() as session:
            volume = await session.get(Volume, volume_id)
            if volume is not None:
                volume.size += MIB
                await session.commit()

    async with sessions() as session:
        ids = (await session.scalars(text("SELECT id FROM volumes LIMIT :count"), {"count": volumes // 10})).all()
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for volume_id in ids:
            group.create_task(grow(volume_id))
    seconds = time.monotonic() - began
    await engine.dispose()
    return len(ids), seconds


async def _cistern(services: Services, volumes: int) -> Measured:
    """Run a bulk job with its ledger, leases, fences and lanes, from the request to `succeeded`."""
    with worker(services.settings, "null:") as process:
        await wait_for_workers(services.database, [process])
        return volumes, await _bulk(services, MAX_CONCURRENT)


async def _bulk(services: Services, max_concurrent: int) -> float:
    """Return the seconds from the request for a bulk job over all volumes to its end."""
    began = time.monotonic()
    job = await services.bulk.request(BulkExpandRequest(GROWTH, max_concurrent=max_concurrent))
    await services.watcher.ended(job.id, 3600)
    seconds = time.monotonic() - began
    job = await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)
    if job.succeeded != job.total:
        raise RuntimeError(f"{job.succeeded} of {job.total} volumes were expanded: {job.error}")
    return seconds


async def _one_statement(services: Services, volumes: int) -> Measured:
    began = time.monotonic()
    async with services.database.transaction() as session:
        await session.execute(text("SET LOCAL statement_timeout = 0"))
        await session.execute(text("UPDATE volumes SET size = size + :by, updated_at = now()"), {"by": MIB})
    return volumes, time.monotonic() - began


METHODS: Final[dict[str, Method]] = {
    "a session for each volume": _naive,
    "Cistern's bulk expansion": _cistern,
    "one UPDATE of the table": _one_statement,
}


# --- more workers --------------------------------------------------------------------------------------------


async def replicas(settings: Settings, _: int) -> None:
    """Expand 20,000 volumes with 20 ms of storage work each, 16 at once per worker, on 1, 2 and 4 workers."""
    print("\n20,000 volumes, 20 ms of storage work each, 16 at once for each worker process\n")
    print("| workers | seconds | speed-up | share of each worker, percent |\n|---|---|---|---|")
    alone = 0.0
    async with open_services(settings, adopt=True) as services, services.watcher.watching():
        for count in (1, 2, 4):
            await insert_volumes(services.database, 20_000)
            with TemporaryDirectory() as folder, ExitStack() as stack:
                journals = [Path(folder) / str(number) for number in range(count)]
                urls = [f"faulty+null:?delay_ms=20&journal={journal}" for journal in journals]
                await wait_for_workers(services.database, [stack.enter_context(worker(settings, url)) for url in urls])
                seconds = await _bulk(services, 16 * count)
                shares = ", ".join(f"{_expanded(journal) / 200:.0f}" for journal in journals)
            alone = alone or seconds
            print(f"| {count} | {seconds:.1f} | {alone / seconds:.2f} | {shares} |")


def _expanded(journal: Path) -> int:
    """Return the number of volumes that a worker has expanded."""
    return sum('"published"' in line for line in journal.read_text(encoding="utf-8").splitlines())


# --- memory --------------------------------------------------------------------------------------------------


async def memory(settings: Settings, _: int) -> None:
    """Measure the worker's peak memory, and the time per volume, for growing numbers of volumes."""
    print("\n| volumes | peak MiB of the worker | microseconds per volume |\n|---|---|---|")
    async with open_services(settings, adopt=True) as services, services.watcher.watching():
        for volumes in (1_000, 10_000, 200_000):
            await insert_volumes(services.database, volumes)
            with worker(settings, "null:") as process:
                await wait_for_workers(services.database, [process])
                seconds = await _bulk(services, MAX_CONCURRENT)
                peak = _peak(process.pid)
            print(f"| {volumes:,} | {peak:.0f} | {seconds / volumes * 1e6:.0f} |")


def _peak(pid: int) -> float:
    """Return the peak memory of a process in MiB; Linux only."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:  # noqa: PTH123
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


# --- single jobs beside a bulk -------------------------------------------------------------------------------


async def fairness(settings: Settings, _: int) -> None:
    """Time single expansions while a bulk job over 50,000 volumes of 5 ms each keeps the worker busy."""
    slow = "faulty+null:?delay_ms=5"
    async with open_services(settings, adopt=True) as services, services.watcher.watching():
        await insert_volumes(services.database, 50_200)
        singles = await _exclude_from_bulk(services, 200)
        with worker(settings, slow) as process, api(settings, slow) as address:
            await wait_for_workers(services.database, [process])
            others = Selection(labels={"of": "bulk"})
            bulk = await services.bulk.request(
                BulkExpandRequest(GROWTH, selection=others, max_concurrent=MAX_CONCURRENT)
            )
            seconds = await _singles(services, address, singles, bulk)
    print(f"\n{len(seconds)} single expansions during the bulk job, POST to succeeded: ", end="")
    print(f"median {median(seconds):.3f} s, p99 {quantiles(seconds, n=100)[98]:.3f} s")


async def _exclude_from_bulk(services: Services, count: int) -> Sequence[UUID]:
    """Label all volumes except ``count`` for the bulk job, and return the ids of the others."""
    async with services.database.transaction() as session:
        ids = (await session.scalars(text("SELECT id FROM volumes LIMIT :count"), {"count": count})).all()
        label = text("UPDATE volumes SET labels = jsonb_build_object('of', 'bulk') WHERE id <> ALL(:ids)")
        await session.execute(label, {"ids": list(ids)})
    return ids


async def _singles(services: Services, address: str, volume_ids: Sequence[UUID], bulk: Job) -> list[float]:
    """Expand one volume after the other until the bulk job ends; return the seconds that each took."""
    seconds: list[float] = []
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60, headers=BEARER) as http:
        for volume_id in itertools.cycle(volume_ids):
            if (await services.jobs.get(bulk.id, project_id=DEFAULT_PROJECT)).ended:
                return seconds
            began = time.monotonic()
            body = {"by": MIB}
            response = await http.post(f"/volumes/{volume_id}/expand", json=body, headers={"Prefer": "wait=30"})
            if response.json()["status"] != "succeeded":
                raise RuntimeError(response.text)
            seconds.append(time.monotonic() - began)
    return seconds


# --- cancelling ----------------------------------------------------------------------------------------------


async def cancelling(settings: Settings, _: int) -> None:
    """Time the cancellation of a bulk job in the middle of 20,000 volumes of 20 ms each."""
    seconds = []
    async with open_services(settings, adopt=True) as services, services.watcher.watching():
        for _ in range(5):
            await insert_volumes(services.database, 20_000)
            with worker(settings, "faulty+null:?delay_ms=20") as process:
                await wait_for_workers(services.database, [process])
                bulk = await services.bulk.request(BulkExpandRequest(GROWTH, max_concurrent=MAX_CONCURRENT))
                async with aclosing(services.watcher.follow(bulk.id, None)) as states:
                    async for job in states:
                        if job.succeeded:
                            break
                began = time.monotonic()
                await services.jobs.cancel(bulk.id)
                await services.watcher.ended(bulk.id, 60)
                seconds.append(time.monotonic() - began)
    print(f"\ncancelled in the middle, {len(seconds)} times: ended after {median(seconds):.2f} s, at most ", end="")
    print(f"{max(seconds):.2f} s")


PARTS: Final[dict[str, Callable[[Settings, int], Coroutine[Any, Any, None]]]] = {
    "race": race,
    "replicas": replicas,
    "memory": memory,
    "fairness": fairness,
    "cancelling": cancelling,
}

if __name__ == "__main__":
    main()
