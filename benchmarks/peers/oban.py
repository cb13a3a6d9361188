"""Oban for Python: asyncio workers, jobs in PostgreSQL, woken by LISTEN and NOTIFY."""

import asyncio
import logging
import platform
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from oban import Oban, job
from oban.schema import install, uninstall

from peers.peer import Peer
from peers.work import CONNECTIONS, DATABASE_URL, Pooled

PAGE = 500
work = Pooled()
logging.getLogger("oban").setLevel(logging.ERROR)


@job(queue="default")
async def update(row: int) -> None:
    """Do the work."""
    await work.do(row)


class Client:
    """An instance of Oban that only enqueues."""

    def __init__(self) -> None:
        self._oban: Any = None
        self._pool: Any = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Connect for the duration of the block."""
        self._pool = await Oban.create_pool(DATABASE_URL)
        self._oban = Oban(pool=self._pool)
        yield
        await self._pool.close()

    async def enqueue(self, row: int) -> None:
        """Enqueue one job."""
        await self._oban.enqueue(update.new(row))

    async def enqueue_many(self, rows: Iterable[int]) -> None:
        """Create the tables anew, then enqueue jobs in pages."""
        await uninstall(self._pool)
        await install(self._pool)
        jobs = [update.new(row) for row in rows]
        for first in range(0, len(jobs), PAGE):
            await self._oban.enqueue_many(jobs[first : first + PAGE])


client = Client()
#: For each peer the number of jobs that run at once; the fastest needs many, because a worker fetches and acknowledges
#: jobs in turns.
LIMITS = {"Oban (limit 5,000)": 5000, "Oban (limit 100)": 100}


def run_worker(name: str) -> None:
    """Run the worker."""

    async def run() -> None:
        await work.open()
        pool = await Oban.create_pool(DATABASE_URL)
        async with Oban(pool=pool, queues={"default": LIMITS[name]}):
            await asyncio.Event().wait()

    uvloop.run(run())


def peer(name: str, expected_rate: int) -> Peer:
    """Return the peer with its limit."""
    return Peer(
        name=name,
        worker=("-m", "peers", "oban", "work", name),
        settings=f"{LIMITS[name]:,} jobs at once, uvloop, up to 10 connections for the queue (the default) and "
        f"{CONNECTIONS} for the work, Python {platform.python_version()}, which it needs",
        keeps="Jobs are rows, which are inserted in the caller's transaction and kept for a day; failures are retried. "
        "Jobs that run for more than five minutes are taken for those of a dead worker, and run again.",
        loses="No committed job; but there is no fence: a job of more than five minutes may run twice.",
        expected_rate=expected_rate,
        enqueue=client.enqueue,
        enqueue_many=client.enqueue_many,
        connected=client.connected,
    )


PEERS = (peer("Oban (limit 5,000)", 2800), peer("Oban (limit 100)", 1000))
