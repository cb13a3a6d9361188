"""Huey: threads, a Redis list."""

import logging
from collections.abc import Iterable

from huey import RedisHuey

from peers.peer import Peer
from peers.work import REDIS_URL, Threaded

work = Threaded()
queue = RedisHuey("peers", url=REDIS_URL, results=False)
logging.getLogger("huey").setLevel(logging.ERROR)


@queue.task()
def update(row: int) -> None:
    """Do the work."""
    work.do(row)


async def enqueue(row: int) -> None:
    """Enqueue one job."""
    update(row)


async def enqueue_many(rows: Iterable[int]) -> None:
    """Enqueue jobs one after the other."""
    for row in rows:
        update(row)


THREADS = "8"
PEERS = (
    Peer(
        name="Huey",
        worker=("-m", "huey.bin.huey_consumer", "-w", THREADS, "-k", "thread", "-q", "peers.huey.queue"),
        settings=f"{THREADS} threads (16 and 100 were no faster), no results kept",
        keeps="Nothing: a worker removes a task from Redis when it starts it; failures are retried only if configured.",
        loses="Every job that a dead worker had started; all jobs that Redis loses.",
        expected_rate=1600,
        enqueue=enqueue,
        enqueue_many=enqueue_many,
    ),
)
