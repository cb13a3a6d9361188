"""Absurd: durable tasks in PostgreSQL, claimed by polling."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from absurd_sdk import AsyncAbsurd
from absurdctl import BUNDLED_SCHEMA_SQL
from psycopg import AsyncConnection

from peers.peer import Peer
from peers.work import CONNECTIONS, DATABASE_URL, Pooled

PAGE = 500
#: A client has one connection, so several in one process are several times as fast as a single one.
CLIENTS = 10
TASKS = 10
POLL_SECONDS = 0.05
work = Pooled()


async def update(params: dict[str, Any], _: object) -> None:
    """Do the work."""
    await work.do(params["row"])


class Queue:
    """A client of the queue."""

    def __init__(self) -> None:
        self._connection: Any = None
        self._client: Any = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Connect for the duration of the block."""
        async with await AsyncConnection.connect(DATABASE_URL, autocommit=True) as connection:
            self._connection, self._client = connection, AsyncAbsurd(connection)
            yield

    async def enqueue(self, row: int) -> None:
        """Enqueue one job."""
        await self._client.spawn("update", {"row": row}, queue="default")

    async def enqueue_many(self, rows: Iterable[int]) -> None:
        """Create the tables anew, then enqueue jobs in pages."""
        await self._connection.execute("DROP SCHEMA IF EXISTS absurd CASCADE")
        await self._connection.execute(BUNDLED_SCHEMA_SQL)
        await self._client.create_queue()
        jobs = [*rows]
        for first in range(0, len(jobs), PAGE):
            async with self._connection.transaction():
                for row in jobs[first : first + PAGE]:
                    await self.enqueue(row)


def run_worker(_: str) -> None:
    """Run the clients."""

    async def run_client() -> None:
        client = AsyncAbsurd(DATABASE_URL)
        client.register_task(name="update")(update)
        await client.start_worker(concurrency=TASKS, poll_interval=POLL_SECONDS)

    async def run() -> None:
        await work.open()
        await asyncio.gather(*(run_client() for _ in range(CLIENTS)))

    uvloop.run(run())


queue = Queue()
PEERS = (
    Peer(
        name="Absurd",
        worker=("-m", "peers", "absurd", "work", "Absurd"),
        settings=f"{CLIENTS} clients in one process, each with one connection and {TASKS} tasks at once, polls every "
        f"{1000 * POLL_SECONDS:.0f} ms, uvloop, {CONNECTIONS} connections for the work",
        keeps="Tasks are rows, which are inserted in the caller's transaction, with a checkpoint for each finished "
        "step. Those of a dead worker are retried when their claim expires, after two minutes.",
        loses="No committed job; but there is no fence: a task that outlives its claim may run twice.",
        expected_rate=600,
        enqueue=queue.enqueue,
        enqueue_many=queue.enqueue_many,
        connected=queue.connected,
    ),
)
