"""SAQ: asyncio workers, a Redis list, jobs as JSON."""

from typing import Any

import uvloop
from redis.asyncio import Redis
from saq.queue.redis import RedisQueue
from saq.runner import run

from peers.peer import Peer
from peers.work import REDIS_URL, Pooled, at_once

work = Pooled()
# Not by its own from_url, which knows no sockets in the file system.
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
        settings="concurrency 100, uvloop, results kept for ten minutes, as they are by default",
        keeps="Jobs of a worker that died are found by a sweep, once a minute, and retried only if retries were set.",
        loses="A job whose enqueueing fails after the commit that it belongs to; all jobs that Redis loses. No fence.",
        pace=850,
        one=enqueue,
        many=lambda rows: at_once(map(enqueue, rows)),
    ),
)


def work_as(_: str) -> None:
    """Be a worker, as its own command is one, on uvloop."""
    uvloop.install()
    run("peers.saq.settings")
