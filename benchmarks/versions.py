"""Compare this checkout with another one of Cistern: requests and jobs per second, in turn, in short slices.

    python benchmarks/versions.py OTHER_CHECKOUT [--rounds 12]

The other checkout needs its own `.venv` (`make check` there makes it). Both versions run at the same time, each on
private servers of its own, and only one of them works at a time. A slice takes seconds, so a machine that becomes
faster or slower meanwhile does so for both. The ratios are those of the two slices of one round; printed are their
median and quartiles.
"""

# ruff: noqa: INP001, T201 - not a package, and its output is printed

import argparse
import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import asyncpg
import httpx
from http_load import get, post, run_load
from servers import BEARER, HERE, MIB, Server, add_key, running, serving

from domain.embedded import EmbeddedServers, temporary_data_dir

THIS: Final = HERE.parent
#: Volumes that are expanded in a round, and jobs that are done.
VOLUMES: Final = 4_000
#: More creations than are accepted in one slice.
CREATIONS: Final = 6_000
POLLED: Final = 200
SECONDS: Final = 1.0


@dataclass(frozen=True)
class Version:
    """One checkout with its servers, its API, and a connection to its database."""

    folder: Path
    environment: Mapping[str, str]
    server: Server
    rows: Any

    async def clear(self, volumes: int) -> list[str]:
        """Replace all data by this number of available volumes; return their ids."""
        tables = await self.rows.fetch(
            "SELECT relname FROM pg_class WHERE relname IN ('jobs', 'volumes', 'workers', 'audit_entries')"
            " AND relkind = 'r'"
        )
        await self.rows.execute(f"TRUNCATE {', '.join(row['relname'] for row in tables)} CASCADE")
        await self.rows.execute(_AVAILABLE, volumes, MIB)
        await self.rows.execute("VACUUM ANALYZE")
        await self.rows.execute("CHECKPOINT")
        return [str(row["id"]) for row in await self.rows.fetch("SELECT id FROM volumes ORDER BY id")]

    async def work_off(self) -> float:
        """Run a worker until all jobs have ended, and return the jobs per second after the first tenth."""
        await self.rows.execute("VACUUM ANALYZE")  # plans must not depend on when autovacuum comes
        with running(["-m", "worker"], self.environment, folder=self.folder):
            while await self.rows.fetchval("SELECT count(*) - count(finished_at) FROM jobs"):  # noqa: ASYNC110
                await asyncio.sleep(0.2)  # the database tells nobody
        return float(await self.rows.fetchval(_RATE))


_AVAILABLE: Final = """
    INSERT INTO volumes (id, name, backend, state, size, version, labels)
    SELECT uuidv7(), 'grown-' || n, 'local', 'available', $2, 1, '{}' FROM generate_series(1, $1::integer) AS n"""
_RATE: Final = """
    SELECT count(*) FILTER (WHERE finished_at > began) / extract(epoch FROM max(finished_at) - began)
    FROM jobs, (SELECT percentile_disc(0.1) WITHIN GROUP (ORDER BY finished_at) AS began FROM jobs) AS start
    GROUP BY began"""


def main() -> None:
    """Measure both versions and print the ratios."""
    parser = argparse.ArgumentParser(description="Compare this checkout with another one.")
    parser.add_argument("other", type=Path, help="the other checkout, with its .venv")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        urls = [stack.enter_context(_servers()) for _ in range(2)]
        asyncio.run(_compare((THIS, arguments.other.resolve()), urls, arguments.rounds))


@contextmanager
def _servers() -> Iterator[EmbeddedServers]:
    with temporary_data_dir() as data_dir, EmbeddedServers(data_dir) as servers:
        yield servers


async def _compare(folders: Sequence[Path], servers: Sequence[EmbeddedServers], rounds: int) -> None:
    results: dict[str, list[tuple[float, float]]] = {}
    async with _version(folders[0], servers[0]) as this, _version(folders[1], servers[1]) as other:
        for number in range(rounds):
            order = (this, other) if number % 2 == 0 else (other, this)
            figures: dict[str, dict[Path, float]] = {}
            for step in STEPS:
                for version in order:
                    for name, rate in (await step(version)).items():
                        figures.setdefault(name, {})[version.folder] = rate
            for name, rates in figures.items():
                pair = rates[this.folder], rates[other.folder]
                results.setdefault(name, []).append(pair)
                print(f"  {name:20}{pair[0]:10,.0f}{pair[1]:10,.0f}{pair[0] / pair[1]:8.2f}", flush=True)
    print("\n| per second | this | other | this / other: median | quartiles |\n|---|---|---|---|---|")
    for name, pairs in results.items():
        ratios = [mine / others for mine, others in pairs]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (*ratios * 3,)
        mine, others = (median(values) for values in zip(*pairs, strict=True))
        print(f"| {name} | {mine:,.0f} | {others:,.0f} | {median(ratios):.2f} | {low:.2f} to {high:.2f} |")


@asynccontextmanager
async def _version(folder: Path, servers: EmbeddedServers) -> AsyncIterator[Version]:
    environment = {
        "PYTHONPATH": str(folder),
        "CISTERN_DATABASE_URL": servers.database_url,
        "CISTERN_REDIS_URL": servers.redis_url,
        "CISTERN_BACKENDS": '{"local": "null:"}',
        "CISTERN_LOG_LEVEL": "error",
        "CISTERN_MAX_JOBS": "100",
    }
    with running(["-m", "api.cli", "migrate"], environment, folder=folder) as migration:
        migration.wait()
    url = servers.database_url.replace("postgresql+asyncpg", "postgresql")
    rows = await asyncpg.connect(url)
    if await rows.fetchval("SELECT to_regclass('api_keys')"):  # earlier versions asked for none
        await add_key(url)
    try:
        with serving("api.main:app", environment, "/readyz", folder=folder) as server:
            yield Version(folder, environment, server, rows)
    finally:
        await rows.close()


async def _creations(version: Version) -> dict[str, float]:
    await version.clear(0)
    requests = [post("/api/v1/volumes", {"name": f"created-{number}", "size": MIB}) for number in range(CREATIONS)]
    return {"create": (await run_load(version.server, requests, 202, SECONDS, cycle=False)).rate}


async def _expansions(version: Version) -> dict[str, float]:
    volumes = await version.clear(VOLUMES)
    requests = [post(f"/api/v1/volumes/{volume}/expand", {"by": MIB}) for volume in volumes]
    return {"expand": (await run_load(version.server, requests, 202, 60, cycle=False)).rate}


async def _live_polls(version: Version) -> dict[str, float]:
    return await _polls(version, "live")


async def _jobs(version: Version) -> dict[str, float]:
    return {"jobs": await version.work_off()}


async def _ended_polls(version: Version) -> dict[str, float]:
    return await _polls(version, "ended")


async def _polls(version: Version, state: str) -> dict[str, float]:
    rows = await version.rows.fetch("SELECT id FROM jobs ORDER BY id LIMIT $1", POLLED)
    paths = [f"/api/v1/jobs/{row['id']}" for row in rows]
    async with httpx.AsyncClient(base_url=version.server.address, headers=BEARER) as http:
        tags = [(await http.get(path)).headers["ETag"] for path in paths]
    unchanged = [get(path, {"If-None-Match": tag}) for path, tag in zip(paths, tags, strict=True)]
    full = await run_load(version.server, [get(path) for path in paths], 200, SECONDS, cycle=True)
    return {
        f"poll {state}": full.rate,
        f"poll {state}, 304": (await run_load(version.server, unchanged, 304, SECONDS, cycle=True)).rate,
    }


#: One round; each step leaves what the next one needs.
STEPS: Final = (_creations, _expansions, _live_polls, _jobs, _ended_polls)


if __name__ == "__main__":
    main()
