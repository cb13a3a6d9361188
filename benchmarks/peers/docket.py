"""docket: asyncio workers, a Redis stream."""

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta

import uvloop
from docket import Docket, Worker

from peers.peer import Peer
from peers.work import REDIS_URL, Pooled

AT_ONCE = 100
CHECK_MS = 10
work = Pooled()
logging.getLogger("docket").setLevel(logging.ERROR)


async def update(row: int) -> None:
    """Do the work."""
    await work.do(row)


# Each running task may need a connection; with redis-py's default of 100 at most, some would fail.
docket = Docket(
    name="peers",
    url=f"{REDIS_URL}{'&' if '?' in REDIS_URL else '?'}max_connections={3 * AT_ONCE}",
    execution_ttl=timedelta(0),
)
docket.register(update)


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Connect for the duration of the block."""
    async with docket:
        yield


async def enqueue(row: int) -> None:
    """Enqueue one job."""
    await docket.add(update)(row)


async def enqueue_many(rows: Iterable[int]) -> None:
    """Enqueue jobs in pages."""
    await docket.add_many(docket.call(update)(row) for row in rows)


def run_worker(_: str) -> None:
    """Run the worker."""

    async def run() -> None:
        await work.open()
        interval = timedelta(milliseconds=CHECK_MS)
        async with docket, Worker(docket, concurrency=AT_ONCE, minimum_check_interval=interval) as worker:
            await worker.run_forever()

    uvloop.run(run())


PEERS = (
    Peer(
        name="docket",
        worker=("-m", "peers", "docket", "work", "docket"),
        settings=f"concurrency {AT_ONCE}, checks every {CHECK_MS} ms, uvloop, no results kept",
        keeps="Tasks of a dead worker go to another one after five minutes; a live worker renews its claims.",
        loses="A job whose enqueueing fails after the commit that it belongs to; all jobs that Redis loses. No fence.",
        expected_rate=900,
        enqueue=enqueue,
        enqueue_many=enqueue_many,
        connected=connected,
    ),
)
