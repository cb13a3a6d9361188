"""Awa: a core in Rust, which claims and completes jobs in PostgreSQL, and calls asyncio functions."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvloop
from awa import AsyncClient

from peers.peer import Peer
from peers.work import CONNECTIONS, DATABASE_URL, Pooled

PAGE = 500
AT_ONCE = 500
QUEUE = "update"
# Its parser requires a host, even if the query names a socket.
URL = DATABASE_URL.replace("@/", "@localhost/")


@dataclass
class Update:
    """The arguments of a job."""

    row: int


class Queue:
    """A client of the queue."""

    def __init__(self) -> None:
        self._client: Any = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Connect for the duration of the block."""
        async with AsyncClient(URL) as client:
            self._client = client
            yield

    async def enqueue(self, row: int) -> None:
        """Enqueue one job."""
        await self._client.insert(Update(row), queue=QUEUE)

    async def enqueue_many(self, rows: Iterable[int]) -> None:
        """Create the tables or empty them, then enqueue jobs in pages."""
        await self._client.migrate()
        await self._client.install_queue_storage(reset=True)
        jobs = [Update(row) for row in rows]
        for first in range(0, len(jobs), PAGE):
            await self._client.enqueue_many_copy(jobs[first : first + PAGE], queue=QUEUE)


def run_worker(_: str) -> None:
    """Run the worker."""

    async def run() -> None:
        work = Pooled()
        await work.open()
        client = AsyncClient(URL, max_connections=CONNECTIONS)

        @client.task(Update, queue=QUEUE)
        async def update(job: Any) -> None:
            await work.do(job.args.row)

        await client.start([(QUEUE, AT_ONCE)])
        await asyncio.Event().wait()

    uvloop.run(run())


queue = Queue()
PEERS = (
    Peer(
        name="Awa",
        worker=("-m", "peers", "awa", "work", "Awa"),
        settings=f"{AT_ONCE} jobs at once, uvloop, {CONNECTIONS} connections for the queue and {CONNECTIONS} for the "
        "work",
        keeps="Jobs are rows, which are inserted in the caller's transaction. Those of a dead worker run again when "
        "their heartbeat is 90 s old, and those that run for five minutes too; failures are retried.",
        loses="No committed job. A late outcome is rejected (each claim has a number), but the storage has no fence.",
        expected_rate=1500,
        enqueue=queue.enqueue,
        enqueue_many=queue.enqueue_many,
        connected=queue.connected,
    ),
)
