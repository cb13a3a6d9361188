"""streaQ: asyncio workers, a Redis stream."""

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from streaq import Worker

from peers.peer import Peer
from peers.work import REDIS_URL, Pooled

PAGE = 500
work = Pooled()


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    """Connect when the worker starts."""
    await work.open()
    yield


worker: Any = Worker(REDIS_URL, concurrency=100, lifespan=lifespan, anyio_kwargs={"use_uvloop": True})


@worker.task(silent=True, ttl=0)
async def update(row: int) -> None:
    """Do the work."""
    await work.do(row)


async def enqueue_many(rows: Iterable[int]) -> None:
    """Enqueue jobs in pages."""
    tasks = [update.enqueue(row) for row in rows]
    for first in range(0, len(tasks), PAGE):
        await worker.enqueue_many(tasks[first : first + PAGE])


async def enqueue(row: int) -> None:
    """Enqueue one job."""
    await update.enqueue(row)


PEERS = (
    Peer(
        name="streaQ",
        # Not with its own command, which logs every job.
        worker=("-m", "peers", "streaq", "work", "streaQ"),
        settings="concurrency 100, uvloop, no results kept",
        keeps="Messages of a dead worker go to another one after a minute; a live worker renews its claims.",
        loses="A job whose enqueueing fails after the commit that it belongs to; all jobs that Redis loses. No fence.",
        expected_rate=450,
        enqueue=enqueue,
        enqueue_many=enqueue_many,
        connected=lambda: worker,
    ),
)


def run_worker(_: str) -> None:
    """Run the worker."""
    logging.getLogger("streaq").setLevel(logging.ERROR)
    worker.run_sync()
