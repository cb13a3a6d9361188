"""What a second installation on the same Redis costs the first one: pick-up latency and a bulk expansion.

    python benchmarks/two_installations.py [--quick]

Both have a database of their own on one PostgreSQL. The first one is measured alone, and while the other one

- has 1,000 messages in Redis and no process: what its messages cost,
- has a worker and an API that are idle: what its polling costs,
- accepts and does five jobs per second: what its load costs, on the same cores and in the same PostgreSQL.

The rounds are interleaved. Machines are noisy: compare only ratios within one run.
"""

# ruff: noqa: INP001, T201 - not a package, and its output is printed

import argparse
import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg
import httpx
from pacing import in_order_of_round
from pickup import begun_times, trickle
from servers import BEARER, MIB, add_key, api, insert_volumes, private_settings, vacuum, wait_for_workers, worker
from sqlalchemy import text

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.bulk.requests import Selection
from domain.db.migrations import migrate
from domain.logs import configure_logging
from domain.services import Services, open_services
from domain.settings import Settings
from domain.tasks import in_background
from domain.volumes.model import Growth

MESSAGES: Final = 1_000
#: Seconds between two jobs of the other installation, and how many volumes it has for them.
PAUSE: Final = 0.2
VOLUMES_OF_OTHER: Final = 2_000
MAX_CONCURRENT: Final = 64


class Figures(NamedTuple):
    """Of one round: pick-up in milliseconds (median, 90th percentile), and the bulk expansion in seconds."""

    p50: float
    p90: float
    bulk: float


#: Brings the other installation into a condition for the duration of a block.
Condition = Callable[[Services], AbstractAsyncContextManager[None]]


def main() -> None:
    """Run all rounds and print the figures with their ratios."""
    parser = argparse.ArgumentParser(description="Measure two installations on one Redis.")
    parser.add_argument("--quick", action="store_true", help="check in a minute that it works")
    quick = parser.parse_args().quick
    with private_settings(log_level="error") as settings:
        configure_logging(settings)
        asyncio.run(_create_database(settings))
        other = settings.model_copy(update={"database_url": settings.database_url.replace("/cistern?", "/other?")})
        migrate(other.database_url)
        asyncio.run(add_key(other.database_url))
        results = asyncio.run(_measure(settings, other, *((1, 10, 1_000) if quick else (10, 40, 5_000))))
    print("\n| the other installation | pick-up p50, ms | p90, ms | bulk, s | ratios to alone |\n|---|---|---|---|---|")
    for name, rounds in results.items():
        p50, p90, bulk = map(median, zip(*rounds, strict=True))
        print(f"| {name} | {p50:.1f} | {p90:.1f} | {bulk:.2f} | {_ratios(rounds, results['alone'])} |")


def _ratios(rounds: Sequence[Figures], alone: Sequence[Figures]) -> str:
    """Return the medians of the ratios within each round: a noisy minute then affects both of its sides."""
    pairs = [[one / other for one, other in zip(*pair, strict=True)] for pair in zip(rounds, alone, strict=True)]
    return ", ".join(f"{median(ratios):.2f}" for ratios in zip(*pairs, strict=True))


async def _create_database(settings: Settings) -> None:
    connection = await asyncpg.connect(settings.database_url.replace("postgresql+asyncpg", "postgresql"))
    await connection.execute("CREATE DATABASE other")
    await connection.close()


async def _measure(
    first: Settings, second: Settings, rounds: int, samples: int, volumes: int
) -> dict[str, list[Figures]]:
    """Measure the first installation in every condition of the second one, in each round in another order."""
    results: dict[str, list[Figures]] = {name: [] for name in CONDITIONS}
    with TemporaryDirectory(prefix="cistern-bench-") as folder:
        journal = Path(folder) / "journal"
        url = f"faulty+null:?journal={journal}"
        async with (
            open_services(first, adopt=True) as services,
            services.watcher.watching(),
            open_services(second, adopt=True) as other,
        ):
            await insert_volumes(services.database, volumes)
            picked = await _volume_ids(services, samples)
            with worker(first, url) as process, api(first, url) as address:
                await wait_for_workers(services.database, [process])
                await _bulk(services)  # the first one plans its statements
                order = [
                    (number, *one) for number in range(rounds) for one in in_order_of_round(number, CONDITIONS.items())
                ]
                for number, name, condition in order:
                    await _prepare(other)
                    await vacuum(services.database)
                    async with condition(other):
                        pickups = await _pickups(address, picked, journal)
                        figures = Figures(median(pickups), quantiles(pickups, n=10)[8], await _bulk(services))
                    results[name].append(figures)
                    print(f"  {number + 1}, {name}: {figures.p50:.1f}, {figures.p90:.1f} ms, {figures.bulk:.2f} s")
    return results


async def _pickups(address: str, volumes: Sequence[str], journal: Path) -> list[float]:
    await asyncio.to_thread(os.truncate, journal, 0)
    times = await trickle(address, volumes)
    while True:
        begun = await asyncio.to_thread(begun_times, journal)
        if begun.keys() == times.keys():
            return [(begun[volume] - answered) / 1e6 for volume, (_, answered) in times.items()]
        await asyncio.sleep(0.1)


async def _bulk(services: Services) -> float:
    began = time.monotonic()
    request = BulkExpandRequest(GrowthPolicy(by=MIB), selection=Selection(), max_concurrent=MAX_CONCURRENT)
    job = await services.bulk.request(request)
    await services.watcher.ended(job.id, 600)
    return time.monotonic() - began


async def _volume_ids(services: Services, count: int) -> list[str]:
    async with services.database.transaction() as session:
        ids = await session.scalars(text("SELECT id FROM volumes LIMIT :count"), {"count": count})
        return [str(volume_id) for volume_id in ids]


async def _prepare(other: Services) -> None:
    """Remove the jobs and messages of the condition before."""
    await insert_volumes(other.database, VOLUMES_OF_OTHER)
    async for key in other.queue.redis.scan_iter(f"{other.queue.keys.prefix}*"):
        await other.queue.redis.delete(key)


@asynccontextmanager
async def _alone(_: Services) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def _messages(other: Services) -> AsyncIterator[None]:
    """Leave messages in Redis that nobody fetches."""
    requests = (
        other.volumes.request_expand(UUID(volume), Growth(by=MIB)) for volume in await _volume_ids(other, MESSAGES)
    )
    await asyncio.gather(*requests)
    yield


@asynccontextmanager
async def _idle(other: Services) -> AsyncIterator[None]:
    with worker(other.settings, "null:") as process, api(other.settings, "null:"):
        await wait_for_workers(other.database, [process])
        yield


@asynccontextmanager
async def _busy(other: Services) -> AsyncIterator[None]:
    async def post_forever(address: str, volumes: Sequence[str]) -> None:
        async with httpx.AsyncClient(base_url=address, headers=BEARER) as http:
            for volume in itertools.cycle(volumes):
                (await http.post(f"/api/v1/volumes/{volume}/expand", json={"by": MIB})).raise_for_status()
                await asyncio.sleep(PAUSE)

    ids = await _volume_ids(other, VOLUMES_OF_OTHER)
    with worker(other.settings, "null:") as process, api(other.settings, "null:") as address:
        await wait_for_workers(other.database, [process])
        async with in_background(post_forever(address, ids)):
            yield


CONDITIONS: Final[dict[str, Condition]] = {
    "alone": _alone,
    "messages, no process": _messages,
    "idle": _idle,
    "5 jobs/s": _busy,
}


if __name__ == "__main__":
    main()
