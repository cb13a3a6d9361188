"""DBOS: durable workflows in PostgreSQL, on a queue that is polled."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy
import uvloop
from dbos import DBOS, DBOSClient, DBOSConfig

from peers.peer import Peer
from peers.work import CONNECTIONS, DATABASE_URL, Pooled

PAGE = 500
AT_ONCE = 100
POLL_SECONDS = 0.01
QUEUE = "update"
URL = DATABASE_URL.replace("postgresql://", "postgresql+psycopg://")
CONFIG: DBOSConfig = {
    "name": "peers",
    "system_database_url": URL,
    "sys_db_pool_size": CONNECTIONS,
    "log_level": "ERROR",
}
work = Pooled()


@DBOS.workflow()
async def update(row: int) -> None:
    """Do the work."""
    await work.do(row)


OPTIONS: Any = {"queue_name": QUEUE, "workflow_name": update.__qualname__}


class Queue:
    """A client of the queue."""

    def __init__(self) -> None:
        self._client: Any = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Connect for the duration of the block."""
        self._client = DBOSClient(system_database_url=URL)
        yield
        self._client.destroy()

    async def enqueue(self, row: int) -> None:
        """Enqueue one job."""
        await self._client.enqueue_async(OPTIONS, row)

    async def enqueue_many(self, rows: Iterable[int]) -> None:
        """Create the tables anew, then enqueue jobs in pages."""
        engine = sqlalchemy.create_engine(URL)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("DROP SCHEMA IF EXISTS dbos CASCADE"))
        DBOS(config=CONFIG)
        DBOS.launch()
        DBOS.destroy()
        jobs = [*rows]
        for first in range(0, len(jobs), PAGE):
            with engine.begin() as connection:
                for row in jobs[first : first + PAGE]:
                    self._client.enqueue_in_transaction(connection, OPTIONS, row)


def run_worker(_: str) -> None:
    """Run the worker."""

    async def run() -> None:
        await work.open()
        DBOS(config=CONFIG)
        DBOS.launch()
        await DBOS.register_queue_async(QUEUE, worker_concurrency=AT_ONCE, polling_interval_sec=POLL_SECONDS)
        await asyncio.Event().wait()

    uvloop.run(run())


queue = Queue()
PEERS = (
    Peer(
        name="DBOS",
        worker=("-m", "peers", "dbos", "work", "DBOS"),
        settings=f"{AT_ONCE} workflows at once, polls every {1000 * POLL_SECONDS:.0f} ms, uvloop, {CONNECTIONS} "
        f"connections for the queue and {CONNECTIONS} for the work",
        keeps="Workflows are rows, which can be inserted in the caller's transaction. Those of a dead process run "
        "again when a process with its executor id starts.",
        loses="No committed job; but there is no fence, and no lease that expires.",
        expected_rate=800,
        enqueue=queue.enqueue,
        enqueue_many=queue.enqueue_many,
        connected=queue.connected,
    ),
)
