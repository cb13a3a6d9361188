"""What a bulk expansion costs, beside a naive one and beside the least that PostgreSQL could do.

    make bench-bulk        or, one part of it: python benchmarks/bulk.py race|replicas|memory|fairness|cancelling

Everything runs on servers of its own, in turn, in one run: machines are noisy, so only ratios within a run say much.
"""

# ruff: noqa: INP001, T201 - no package, it is there to print, and what it waits for are other processes

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
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from stage import MIB, api, at_work, fill, private_settings, worker

from domain.bulk.expand.policy import BulkExpandRequest, GrowthPolicy
from domain.bulk.selection import Selection
from domain.jobs.model import Job
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.model import Volume

AT_ONCE: Final = 64
GROWTH: Final = GrowthPolicy(by=MIB)

#: So many volumes, in so many seconds.
Measured = tuple[int, float]
Way = Callable[[Services, int], Awaitable[Measured]]


def main() -> None:
    """Measure what was asked for, or everything, and print a table for each."""
    parser = argparse.ArgumentParser(description="What a bulk expansion costs.")
    parser.add_argument("parts", nargs="*", metavar="PART", help="all of them, if none is named")
    parser.add_argument("--volumes", type=int, default=100_000, help="of the race")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for part in asked.parts or PARTS:
        with private_settings(max_concurrent=1000) as settings:
            asyncio.run(PARTS[part](settings, asked.volumes))


# --- (a) a session for each volume, (b) Cistern, (c) one statement -------------------------------------------


async def race(settings: Settings, volumes: int) -> None:
    """Grow the same volumes in three ways."""
    async with open_services(settings) as services, services.watcher.watching():
        rates = {name: await _rate(services, volumes, way) for name, way in WAYS.items()}
    naive = rates["a session for each volume"]
    print(f"\n{volumes} volumes, rows only, {AT_ONCE} at once, one worker process\n")
    print("| way | volumes/s | ratio |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / naive:.1f} |")


async def _rate(services: Services, volumes: int, way: Way) -> float:
    rounds = []
    for _ in range(3):
        await fill(services.database, volumes)
        grown, seconds = await way(services, volumes)
        rounds.append(grown / seconds)
    return median(rounds)


async def _naive(services: Services, volumes: int) -> Measured:
    """The textbook: a TaskGroup, a semaphore, a session and a commit for each volume; nothing survives a crash.

    It grows every tenth volume only: it takes as long for each of them, and all would take minutes.
    """
    engine = create_async_engine(services.settings.database_url, pool_size=AT_ONCE)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    slots = asyncio.Semaphore(AT_ONCE)

    async def grow(volume_id: object) -> None:
        async with slots, sessions() as session:
            volume = await session.get(Volume, volume_id)
            if volume is not None:
                volume.size += MIB
                await session.commit()

    async with sessions() as session:
        ids = (await session.scalars(text("SELECT id FROM volumes LIMIT :some"), {"some": volumes // 10})).all()
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for volume_id in ids:
            group.create_task(grow(volume_id))
    seconds = time.monotonic() - began
    await engine.dispose()
    return len(ids), seconds


async def _cistern(services: Services, volumes: int) -> Measured:
    """A bulk job with its ledger, leases, fences and lanes, from the request to `succeeded`."""
    with worker(services.settings, "null:") as process:
        await at_work(services.database, [process])
        return volumes, await _bulk(services, AT_ONCE)


async def _bulk(services: Services, at_once: int) -> float:
    """Seconds from the request for a bulk job over all volumes to its end."""
    began = time.monotonic()
    job = await services.expansion.request_expand(BulkExpandRequest(GROWTH, max_concurrent=at_once))
    await services.watcher.ended(job.id, 3600)
    seconds = time.monotonic() - began
    job = await services.jobs.get(job.id)
    if job.succeeded != job.total:
        raise RuntimeError(f"of {job.total} volumes {job.succeeded} grew: {job.error}")
    return seconds


async def _one_statement(services: Services, volumes: int) -> Measured:
    began = time.monotonic()
    async with services.database.transaction() as session:
        await session.execute(text("SET LOCAL statement_timeout = 0"))
        await session.execute(text("UPDATE volumes SET size = size + :by, updated_at = now()"), {"by": MIB})
    return volumes, time.monotonic() - began


WAYS: Final[dict[str, Way]] = {
    "a session for each volume": _naive,
    "Cistern's bulk expansion": _cistern,
    "one UPDATE of the table": _one_statement,
}


# --- more workers --------------------------------------------------------------------------------------------


async def replicas(settings: Settings, _: int) -> None:
    """Twenty milliseconds of storage work for each of 20,000 volumes, 16 at once for each worker."""
    print("\n20,000 volumes, 20 ms of storage work each, 16 at once for each worker process\n")
    print("| workers | seconds | as fast as one | items of each worker, percent |\n|---|---|---|---|")
    alone = 0.0
    async with open_services(settings) as services, services.watcher.watching():
        for count in (1, 2, 4):
            await fill(services.database, 20_000)
            with TemporaryDirectory() as folder, ExitStack() as fleet:
                journals = [Path(folder) / str(number) for number in range(count)]
                urls = [f"faulty+null:?delay_ms=20&journal={journal}" for journal in journals]
                await at_work(services.database, [fleet.enter_context(worker(settings, url)) for url in urls])
                seconds = await _bulk(services, 16 * count)
                shares = ", ".join(f"{_share(journal) / 200:.0f}" for journal in journals)
            alone = alone or seconds
            print(f"| {count} | {seconds:.1f} | {alone / seconds:.2f} | {shares} |")


def _share(journal: Path) -> int:
    """How many volumes a worker has grown."""
    return sum('"published"' in line for line in journal.read_text(encoding="utf-8").splitlines())


# --- memory --------------------------------------------------------------------------------------------------


async def memory(settings: Settings, _: int) -> None:
    """The worker's largest size over ever more volumes, and the time for each."""
    print("\n| volumes | peak MiB of the worker | microseconds for each volume |\n|---|---|---|")
    async with open_services(settings) as services, services.watcher.watching():
        for volumes in (1_000, 10_000, 200_000):
            await fill(services.database, volumes)
            with worker(settings, "null:") as process:
                await at_work(services.database, [process])
                seconds = await _bulk(services, AT_ONCE)
                peak = _peak(process.pid)
            print(f"| {volumes:,} | {peak:.0f} | {seconds / volumes * 1e6:.0f} |")


def _peak(pid: int) -> float:
    """The most memory that a process ever had, in MiB; of Linux alone, where it is written down."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:  # noqa: PTH123
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


# --- single jobs beside a bulk -------------------------------------------------------------------------------


async def fairness(settings: Settings, _: int) -> None:
    """How long single expansions take while a bulk job over 50,000 volumes of 5 ms each keeps the worker busy."""
    slow = "faulty+null:?delay_ms=5"
    async with open_services(settings) as services, services.watcher.watching():
        await fill(services.database, 50_200)
        singles = await _set_apart(services, 200)
        with worker(settings, slow) as process, api(settings, slow) as address:
            await at_work(services.database, [process])
            others = Selection(labels={"of": "bulk"})
            bulk = await services.expansion.request_expand(BulkExpandRequest(GROWTH, others, AT_ONCE))
            seconds = await _singles(services, address, singles, bulk)
    print(f"\n{len(seconds)} single expansions beside the bulk, POST to succeeded: ", end="")
    print(f"median {median(seconds):.3f} s, p99 {quantiles(seconds, n=100)[98]:.3f} s")


async def _set_apart(services: Services, count: int) -> Sequence[UUID]:
    """Label all volumes but a few; returns these."""
    async with services.database.transaction() as session:
        ids = (await session.scalars(text("SELECT id FROM volumes LIMIT :count"), {"count": count})).all()
        label = text("UPDATE volumes SET labels = jsonb_build_object('of', 'bulk') WHERE id <> ALL(:ids)")
        await session.execute(label, {"ids": list(ids)})
    return ids


async def _singles(services: Services, address: str, volume_ids: Sequence[UUID], bulk: Job) -> list[float]:
    """Expand one volume after the other as long as the bulk job lasts; the seconds that each took."""
    seconds: list[float] = []
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", timeout=60) as http:
        for volume_id in itertools.cycle(volume_ids):
            if (await services.jobs.get(bulk.id)).ended:
                return seconds
            began = time.monotonic()
            wish = {"by": MIB}
            answer = await http.post(f"/volumes/{volume_id}/expand", json=wish, headers={"Prefer": "wait=30"})
            if answer.json()["status"] != "succeeded":
                raise RuntimeError(answer.text)
            seconds.append(time.monotonic() - began)
    return seconds


# --- cancelling ----------------------------------------------------------------------------------------------


async def cancelling(settings: Settings, _: int) -> None:
    """Seconds from the request for a bulk job's end to that end, in the middle of 20,000 volumes of 20 ms each."""
    seconds = []
    async with open_services(settings) as services, services.watcher.watching():
        for _ in range(5):
            await fill(services.database, 20_000)
            with worker(settings, "faulty+null:?delay_ms=20") as process:
                await at_work(services.database, [process])
                bulk = await services.expansion.request_expand(BulkExpandRequest(GROWTH, max_concurrent=AT_ONCE))
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
