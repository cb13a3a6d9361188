"""Chancy: asyncio workers, jobs in PostgreSQL, woken by LISTEN and NOTIFY."""

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import uvloop
from chancy import Chancy, Queue, Worker, job

from peers.peer import Peer
from peers.work import CONNECTIONS, DATABASE_URL, Pooled

AT_ONCE = 1000
work = Pooled()
log = logging.getLogger("chancy")
log.setLevel(logging.ERROR)
app = Chancy(DATABASE_URL, log=log)
# By default a worker fetches jobs every five seconds; eager polling fetches more as soon as one is done.
queue = Queue("default", concurrency=AT_ONCE, executor=Chancy.Executor.Async, eager_polling=True)


@job(queue="default")
async def update(*, row: int) -> None:
    """Do the work."""
    await work.do(row)


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Connect for the duration of the block."""
    async with app:
        yield


async def enqueue(row: int) -> None:
    """Enqueue one job."""
    await app.push(update.job.with_kwargs(row=row))


async def enqueue_many(rows: Iterable[int]) -> None:
    """Create the tables or empty them, then enqueue jobs in pages."""
    await app.migrate()
    async with app.pool.connection() as connection:
        await connection.execute("TRUNCATE chancy_jobs, chancy_workers")
    await app.declare(queue, upsert=True)
    async for _ in app.push_many([update.job.with_kwargs(row=row) for row in rows]):
        pass


def run_worker(_: str) -> None:
    """Run the worker."""

    async def run() -> None:
        await work.open()
        async with app, Worker(app) as worker:
            await worker.wait_for_shutdown()

    uvloop.run(run())


PEERS = (
    Peer(
        name="Chancy",
        worker=("-m", "peers", "chancy", "work", "Chancy"),
        settings=f"{AT_ONCE:,} jobs at once in its asyncio executor, eager polling, uvloop, up to 10 connections for "
        f"the queue (the default) and {CONNECTIONS} for the work",
        keeps="Jobs are rows, which are inserted in the caller's transaction. Those of a worker whose heartbeat is "
        "90 s old run again; failures are retried only if configured.",
        loses="No committed job; but there is no fence. Outcomes are written once a second; jobs whose outcome a dead "
        "worker had not written run again.",
        expected_rate=1500,
        enqueue=enqueue,
        enqueue_many=enqueue_many,
        connected=connected,
    ),
)
