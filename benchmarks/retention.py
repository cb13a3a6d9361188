"""What it costs to delete ended jobs row by row, and to drop a partition that has them instead. For docs/scale.md.

python benchmarks/retention.py        takes a minute or two
"""

# ruff: noqa: INP001, T201 - not a package, and its output is printed

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from arena import cpu_by_program
from buffers import insert_jobs
from servers import private_settings

from domain.services import open_services
from domain.settings import Settings

JOBS: Final = 200_000


async def measure(settings: Settings) -> None:
    """Measure the drop of a partition, the deletion in batches, and the VACUUM after it; print a table."""
    async with open_services(settings) as services:
        await insert_jobs(services.database, JOBS, 100)
        url = settings.database_url.replace("postgresql+asyncpg", "postgresql")
        connection = await asyncpg.connect(url, server_settings={"statement_timeout": "0"})
        # Older than the days for which jobs are kept, and the table as it is without these updates.
        await connection.execute("UPDATE jobs SET finished_at = finished_at - interval '2 days'")
        await connection.execute("VACUUM FULL ANALYZE jobs")
        print("| step | seconds | PostgreSQL's CPU time, us per job | WAL, bytes per job |\n|---|---|---|---|")
        # A copy, since the table of jobs has no partitions; without indexes, which a drop removes as fast.
        await connection.execute("CREATE TABLE ended (LIKE jobs INCLUDING DEFAULTS) PARTITION BY RANGE (id)")
        await connection.execute("CREATE TABLE ended_before PARTITION OF ended DEFAULT")
        await connection.execute("INSERT INTO ended SELECT * FROM jobs WHERE finished_at IS NOT NULL")
        async with measured(connection, "drop their partition"):
            await connection.execute("DROP TABLE ended_before")
        async with measured(connection, "delete them in batches, as maintenance does"):
            while (await services.retention.prune()).more:
                pass
        async with measured(connection, "vacuum the table after that"):
            await connection.execute("VACUUM jobs")
        left = await connection.fetchval("SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL")
        await connection.close()
    if left:
        raise RuntimeError(f"{left} jobs are left")


@asynccontextmanager
async def measured(connection: asyncpg.Connection, step: str) -> AsyncIterator[None]:
    """Print what the block costs."""
    lsn, before, began = await connection.fetchval("SELECT pg_current_wal_lsn()"), cpu_by_program(), time.monotonic()
    yield
    seconds, cpu = time.monotonic() - began, cpu_by_program()["postgres"] - before["postgres"]
    wal = await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1)", lsn)
    print(f"| {step} | {seconds:.1f} | {cpu / JOBS:.1f} | {int(wal) / JOBS:.0f} |", flush=True)


def main() -> None:
    """Measure and print."""
    with private_settings(keep_jobs_days=1) as settings:
        asyncio.run(measure(settings))


if __name__ == "__main__":
    main()
