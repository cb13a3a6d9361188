"""Time every page of the dashboard with 100,000 volumes and a million jobs, and what 20 viewers cost PostgreSQL.

    python benchmarks/pages.py        takes some minutes, most of them to insert the rows

Each page is asked for one request at a time. The viewers look at the overview, and ask again every three seconds as
its script does.
"""

# ruff: noqa: INP001, T201 - not a package, and its output is printed

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

import httpx
import psutil
from servers import BEARER, api, private_settings, vacuum
from sqlalchemy import text

from domain.db.base import DEFAULT_PROJECT
from domain.db.database import Database
from domain.settings import Settings

VOLUMES: Final = 100_000
JOBS: Final = 1_000_000
#: How often each page is asked for.
REQUESTS: Final = 100
VIEWERS: Final = 20
VIEWED_SECONDS: Final = 30.0
_REFRESH_SECONDS: Final = 3.0
_INSERT_SECONDS: Final = 1200

_ROWS: Final = (
    """
    INSERT INTO volumes (id, name, backend, state, size, version, labels, used, used_at)
    SELECT uuidv7(n * interval '-1 second'), 'volume-' || n, 'local',
           CASE WHEN n % 1000 = 0 THEN 'error' ELSE 'available' END, 1073741824, 1,
           jsonb_build_object('team', 'team-' || n % 50), (n % 100) * 10737418, now()
    FROM generate_series(1, :volumes) AS n
    """,
    """
    INSERT INTO volume_samples (volume_id, at, size, used)
    SELECT id, date_trunc('hour', now()) - day * interval '1 day', size, used
    FROM (SELECT * FROM volumes ORDER BY id DESC LIMIT 10000) AS newest, generate_series(1, 30) AS day
    """,
    """
    INSERT INTO jobs (id, kind, status, version, params, attempt, max_attempts, epoch, volume_id, volume_name, backend,
                      result, error, dispatched_at, run_at, started_at, finished_at, created_at, created_by)
    SELECT uuidv7(age), CASE WHEN n % 7 = 0 THEN 'volume.create' ELSE 'volume.expand' END,
           CASE WHEN n % 100 = 0 THEN 'failed' ELSE 'succeeded' END, 3, '{"fence_version": 2}', 1, 8, 0,
           CASE WHEN n % 1000 = 0 THEN newest.id ELSE gen_random_uuid() END, 'volume-1', 'local', '{"size": 2097152}',
           CASE WHEN n % 100 = 0 THEN CAST('{"code": "storage-full", "detail": "Full."}' AS jsonb) END,
           now() + age, now() + age, now() + age, now() + age, now() + age, 'key-' || n % 20
    FROM (SELECT n, (n - :jobs - 1) * interval '1 second' AS age FROM generate_series(1, :jobs) AS n) AS past,
         (SELECT id FROM volumes ORDER BY id DESC LIMIT 1) AS newest
    """,
    """
    INSERT INTO jobs (id, kind, status, version, params, attempt, max_attempts, epoch, result, started_at, finished_at,
                      total, succeeded, failed, skipped)
    VALUES (uuidv7(), 'bulk.expand', 'partial', 3, '{"percent": 20, "fence_version": 0}', 1, 8, 0, '{}', now(), now(),
            CAST(:volumes AS bigint), CAST(:volumes AS bigint) - 100, 100, 0)
    """,
    """
    INSERT INTO job_items (job_id, volume_id, status, code, from_size, to_size)
    SELECT job.id, volumes.id, CASE WHEN volumes.state = 'error' THEN 'failed' ELSE 'succeeded' END, 'expanded', 1, 2
    FROM volumes, (SELECT id FROM jobs WHERE kind = 'bulk.expand') AS job
    """,
)


def main() -> None:
    """Insert the rows, ask for all pages, and print a table."""
    with private_settings() as settings:
        asyncio.run(measure(settings))


async def measure(settings: Settings) -> None:
    """Measure the pages, then the viewers."""
    database = Database(settings.database_url)
    ids = await insert_rows(database)
    with api(settings, "null:") as address:
        async with httpx.AsyncClient(base_url=address, headers=BEARER, timeout=60) as client:
            print(f"\n| page, {VOLUMES:,} volumes and {JOBS:,} jobs | median, ms | p99, ms | KiB |\n|---|---|---|---|")
            for path in paths(ids):
                await ask(client, path)
            await watch_overview(client)
    await database.close()


async def insert_rows(database: Database) -> Mapping[str, UUID]:
    """Insert all rows, and return the ids of a volume, a job and the bulk job."""
    async with database.transaction(statement_seconds=_INSERT_SECONDS) as session:
        for statement in _ROWS:
            await session.execute(text(statement), {"volumes": VOLUMES, "jobs": JOBS})
        queries = {
            "volume": "SELECT id FROM volumes ORDER BY id DESC LIMIT 1",
            "job": "SELECT id FROM jobs WHERE status = 'failed' ORDER BY id LIMIT 1",
            "bulk": "SELECT id FROM jobs WHERE kind = 'bulk.expand'",
        }
        ids = {name: await session.scalar(text(query)) for name, query in queries.items()}
    await vacuum(database)
    return ids


def paths(ids: Mapping[str, UUID]) -> Sequence[str]:
    """Return the addresses of all pages, and of lists with each filter."""
    jobs = [*("", "status=failed", "status=succeeded", "status=queued", "kind=volume.expand", "kind=volume.delete")]
    jobs += [*("created_by=key-7", "created_by=nobody", "hours=24", f"volume_id={ids['volume']}")]
    volumes = (
        "",
        "name=volume-77777",
        "name=nothing",
        "state=error",
        "label=team:team-7",
        "usage_above=98",
        "backend=x",
    )
    return (
        "/",
        *(f"/jobs?{query}" for query in jobs),
        f"/jobs/{ids['job']}",
        f"/jobs/{ids['bulk']}",
        f"/jobs/{ids['bulk']}?status=failed",
        *(f"/volumes?{query}" for query in volumes),
        f"/volumes/{ids['volume']}",
        f"/api/v1/volumes/{ids['volume']}/history",
        *("/schedules", "/settings"),
    )


async def ask(client: httpx.AsyncClient, path: str) -> None:
    """Time a page, and print the row of the table."""
    seconds = []
    for _ in range(REQUESTS):
        started_at = time.perf_counter()
        response = await client.get(path)
        seconds.append(time.perf_counter() - started_at)
        response.raise_for_status()
    milliseconds = sorted(1000 * one for one in seconds)
    p99 = milliseconds[len(milliseconds) * 99 // 100 - 1]
    name = path.replace(str(DEFAULT_PROJECT), "ID")
    print(
        f"| `{name}` | {statistics.median(milliseconds):.0f} | {p99:.0f} | {len(response.content) // 1024} |",
        flush=True,
    )


async def watch_overview(client: httpx.AsyncClient) -> None:
    """Let viewers look at the overview, and print how much of a core PostgreSQL uses with and without them."""

    async def view(delay: float) -> None:
        await asyncio.sleep(delay)
        while True:
            (await client.get("/")).raise_for_status()
            await asyncio.sleep(_REFRESH_SECONDS)

    without = await postgresql_part()
    viewers = [asyncio.create_task(view(number * _REFRESH_SECONDS / VIEWERS)) for number in range(VIEWERS)]
    watched = await postgresql_part()
    for viewer in viewers:
        viewer.cancel()
    await asyncio.gather(*viewers, return_exceptions=True)
    print(
        f"\nPostgreSQL uses {100 * without:.2f} % of a core; {100 * watched:.2f} % while {VIEWERS} look at the overview"
    )


async def postgresql_part() -> float:
    """Return the part of a core that PostgreSQL uses while this waits."""
    before, started_at = postgresql_seconds(), time.monotonic()
    await asyncio.sleep(VIEWED_SECONDS)
    return (postgresql_seconds() - before) / (time.monotonic() - started_at)


def postgresql_seconds() -> float:
    """Return the CPU time of the private PostgreSQL, in seconds; its processes are kept for the whole measurement."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        if "postgres" in process.name():
            times = process.cpu_times()
            total += times.user + times.system
    return total


if __name__ == "__main__":
    main()
