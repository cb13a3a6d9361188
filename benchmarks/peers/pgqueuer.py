"""PgQueuer: asyncio workers, jobs in PostgreSQL, woken by LISTEN and NOTIFY."""

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from peers.peer import Peer
from peers.work import CONNECTIONS, DATABASE_URL, Pooled

PAGE = 500
NAME = "update"
logging.getLogger("pgqueuer").setLevel(logging.ERROR)


class Queue:
    """A connection to the queue."""

    def __init__(self) -> None:
        self._queries: Any = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Connect for the duration of the block."""
        connection = await asyncpg.connect(DATABASE_URL)
        self._queries = Queries(AsyncpgDriver(connection))
        yield
        await connection.close()

    async def enqueue(self, row: int) -> None:
        """Enqueue one job."""
        await self._queries.enqueue(NAME, str(row).encode())

    async def enqueue_many(self, rows: Iterable[int]) -> None:
        """Create the tables anew, then enqueue jobs in pages."""
        if await self._queries.has_table("pgqueuer"):
            await self._queries.uninstall()
        await self._queries.install()
        payloads = [str(row).encode() for row in rows]
        for first in range(0, len(payloads), PAGE):
            page = payloads[first : first + PAGE]
            await self._queries.enqueue([NAME] * len(page), page, [0] * len(page))


queue = Queue()
#: For each peer the number of jobs that it fetches at once, and of those that may run.
LIMITS = {"PgQueuer (no limit)": (500, None), "PgQueuer (limit 100)": (50, 100)}


def run_worker(name: str) -> None:
    """Run the worker on uvloop, as PgQueuer's own command does."""
    batch, limit = LIMITS[name]

    async def run() -> None:
        work = Pooled()
        await work.open()
        # A single connection for the queue, as recommended; a pool was no faster.
        worker = PgQueuer(AsyncpgDriver(await asyncpg.connect(DATABASE_URL)))

        @worker.entrypoint(NAME)
        async def update(job: Job) -> None:
            await work.do(int(job.payload))

        await worker.run(batch_size=batch, max_concurrent_tasks=limit)

    uvloop.run(run())


def peer(name: str, running: str, expected_rate: int) -> Peer:
    """Return the peer with its limits."""
    return Peer(
        name=name,
        worker=("-m", "peers", "pgqueuer", "work", name),
        settings=f"batches of {LIMITS[name][0]}, {running}, uvloop, one connection for the queue and {CONNECTIONS} for "
        "the work, durable tables (the default)",
        keeps="Jobs are rows, which are inserted in the caller's transaction. Those of a dead worker run again when "
        "their heartbeat is 30 s old; failures are retried only if the job asks for it.",
        loses="No committed job; but there is no fence: a job whose heartbeat is late may run twice.",
        expected_rate=expected_rate,
        enqueue=queue.enqueue,
        enqueue_many=queue.enqueue_many,
        connected=queue.connected,
    )


PEERS = (
    peer("PgQueuer (no limit)", "any number of jobs at once, so that a worker claims all", 3500),
    peer("PgQueuer (limit 100)", "100 jobs at once", 1800),
)
