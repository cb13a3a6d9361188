"""SAQ: asyncio workers, a Redis list, jobs as JSON."""

from typing import Any

import uvloop
from redis.asyncio import Redis
from saq.queue.redis import RedisQueue
from saq.runner import run

from peers.peer import Peer
from peers.work import REDIS_URL, Pooled, at_once

work = Pooled()
# Not with its own from_url, which does not support Unix sockets.
queue = RedisQueue(Redis.from_url(REDIS_URL))


async def update(_: dict[str, Any], *, row: int) -> None:
    """Do the work."""
    await work.do(row)


settings = {"queue": queue, "functions": [update], "concurrency": 100, "startup": work.open}


def enqueue(row: int) -> Any:
    """Enqueue one job."""
    return queue.enqueue("update", row=row)


PEERS = (
    Peer(
        name="SAQ",
        worker=("-m", "peers", "saq", "work", "SAQ"),
        settings="concurrency 100, uvloop, results kept for ten minutes (the default)",
        keeps="A sweep finds the jobs of a dead worker once a minute; they are retried only if retries were set.",
        loses="A job whose enqueueing fails after the commit that it belongs to; all jobs that Redis loses. No fence.",
        expected_rate=850,
        enqueue=enqueue,
        enqueue_many=lambda rows: at_once(map(enqueue, rows)),
    ),
)


def run_worker(_: str) -> None:
    """Run the worker as SAQ's own command does, on uvloop."""
    uvloop.install()
    run("peers.saq.settings")
