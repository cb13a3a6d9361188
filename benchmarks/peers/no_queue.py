"""The lower bound of the cost: the same updates in one process, without any queue."""

import asyncpg
import uvloop

from peers.peer import Peer
from peers.work import CONNECTIONS, DATABASE_URL, Pooled, at_once

AT_ONCE = 100


async def enqueue(_: object) -> None:
    """Do nothing: the worker finds the rows itself."""


def run_worker(_: str) -> None:
    """Update all rows."""

    async def run() -> None:
        connection = await asyncpg.connect(DATABASE_URL)
        rows = await connection.fetch("SELECT id FROM work ORDER BY id")
        await connection.close()
        work = Pooled()
        await work.open()
        await at_once((work.do(row["id"]) for row in rows), AT_ONCE)

    uvloop.run(run())


PEERS = (
    Peer(
        name="no queue (asyncpg)",
        worker=("-m", "peers", "no_queue", "work", "no queue (asyncpg)"),
        settings=f"{AT_ONCE} updates at once, {CONNECTIONS} connections, uvloop",
        keeps="Nothing: there is no queue, only the updates, each committed.",
        loses="Every update that a dead process had not committed.",
        expected_rate=6000,
        enqueue=enqueue,
        enqueue_many=enqueue,
        has_queue=False,
    ),
)
