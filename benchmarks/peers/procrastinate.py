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


async def enqueue(row: int) -> None:
    """Enqueue one job."""
    await update.defer_async(row=row)


async def enqueue_many(rows: Iterable[int]) -> None:
    """Create the tables or empty them, then enqueue jobs in pages."""
    if await app.check_connection_async():
        await app.connector.execute_query_async("TRUNCATE procrastinate_jobs CASCADE")
    else:
        await app.schema_manager.apply_schema_async()
    jobs = [{"row": row} for row in rows]
    for first in range(0, len(jobs), PAGE):
        await update.batch_defer_async(*jobs[first : first + PAGE])


def run_worker(_: str) -> None:
    """Run the worker."""

    async def run() -> None:
        await work.open()
        async with app.open_async():
            await app.run_worker_async(concurrency=100, delete_jobs="successful")

    asyncio.run(run())


PEERS = (
    Peer(
        name="Procrastinate",
        worker=("-m", "peers", "procrastinate", "work", "Procrastinate"),
        settings=f"concurrency 100, {CONNECTIONS} connections, LISTEN/NOTIFY, succeeded jobs deleted",
        keeps="Jobs are rows, inserted in the caller's transaction. Those of a dead worker stay `doing` until a "
        "task that you write finds and retries them.",
        loses="No committed job; but there is no fence, and no lease that expires.",
        expected_rate=340,
        enqueue=enqueue,
        enqueue_many=enqueue_many,
        connected=app.open_async,
    ),
)
