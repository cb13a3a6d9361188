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


async def one(row: int) -> None:
    """Enqueue one job."""
    update(row)


async def many(rows: Iterable[int]) -> None:
    """Enqueue jobs one after the other."""
    for row in rows:
        update(row)


THREADS = "8"
PEERS = (
    Peer(
        name="Huey",
        worker=("-m", "huey.bin.huey_consumer", "-w", THREADS, "-k", "thread", "-q", "peers.huey.queue"),
        settings=f"{THREADS} threads (16 and 100 were no faster), no results kept",
        keeps="Nothing: a task is gone from Redis when a worker has taken it; failures are retried only if asked for.",
        loses="Every job that a dying worker had taken; all jobs that Redis loses.",
        pace=1600,
        one=one,
        many=many,
    ),
)
