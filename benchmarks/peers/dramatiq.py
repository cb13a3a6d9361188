"""Dramatiq: threads, Redis, worker heartbeats."""

from collections.abc import Iterable

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from peers.peer import Peer
from peers.work import REDIS_URL, Threaded

work = Threaded()
broker = RedisBroker(url=REDIS_URL)
dramatiq.set_broker(broker)


@dramatiq.actor
def update(row: int) -> None:
    """Do the work."""
    work.do(row)


async def enqueue(row: int) -> None:
    """Enqueue one job."""
    update.send(row)


async def enqueue_many(rows: Iterable[int]) -> None:
    """Enqueue jobs one after the other, as Dramatiq has no bulk call."""
    for row in rows:
        update.send(row)


THREADS = "8"
PEERS = (
    Peer(
        name="Dramatiq",
        worker=("-m", "dramatiq", "--processes", "1", "--threads", THREADS, "peers.dramatiq"),
        settings=f"1 worker process, {THREADS} threads (16 and 100 were no faster), no results kept",
        keeps="Messages of a worker whose heartbeat is a minute old are requeued; failures are retried.",
        loses="A job whose enqueueing fails after the commit that it belongs to; all jobs that Redis loses. No fence.",
        expected_rate=1450,
        enqueue=enqueue,
        enqueue_many=enqueue_many,
    ),
)
