"""Procrastinate: asyncio workers, jobs in PostgreSQL, woken by LISTEN and NOTIFY."""

import asyncio
import logging
from collections.abc import Iterable

from procrastinate import App, PsycopgConnector

from peers.peer import Peer
from peers.work import CONNECTIONS, DATABASE_URL, Pooled

PAGE = 500
work = Pooled()
app = App(connector=PsycopgConnector(conninfo=DATABASE_URL, min_size=CONNECTIONS, max_size=CONNECTIONS))
logging.getLogger("procrastinate").setLevel(logging.ERROR)


@app.task(name="update")
async def update(row: int) -> None:
    """Do the work."""
    await work.do(row)


async def one(row: int) -> None:
    """Enqueue one job."""
    await update.defer_async(row=row)


async def many(rows: Iterable[int]) -> None:
    """Enqueue jobs in pages, into tables that are made when they are missing and empty when they are not."""
    if await app.check_connection_async():
        await app.connector.execute_query_async("TRUNCATE procrastinate_jobs CASCADE")
    else:
        await app.schema_manager.apply_schema_async()
    jobs = [{"row": row} for row in rows]
    for first in range(0, len(jobs), PAGE):
        await update.batch_defer_async(*jobs[first : first + PAGE])
    await app.connector.execute_query_async("ANALYZE procrastinate_jobs")


def work_as(_: str) -> None:
    """Be a worker."""

    async def run() -> None:
        await work.open()
        async with app.open_async():
            await app.run_worker_async(concurrency=100, delete_jobs="successful")

    asyncio.run(run())


PEERS = (
    Peer(
        name="Procrastinate",
        worker=("-m", "peers", "procrastinate", "work", "Procrastinate"),
        settings=f"concurrency 100, {CONNECTIONS} connections, LISTEN/NOTIFY, jobs deleted when they have succeeded",
        keeps="Jobs are rows, in the transaction of what they belong to. Those of a worker that died stay `doing` "
        "until a task of your own finds and retries them.",
        loses="Nothing that was committed; but no fence, and no lease that runs out by itself.",
        pace=340,
        one=one,
        many=many,
        connected=app.open_async,
    ),
)
