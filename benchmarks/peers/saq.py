"""SAQ: asyncio workers, a Redis list, jobs as JSON."""

from typing import Any

from redis.asyncio import Redis
from saq.queue.redis import RedisQueue

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
        worker=("-m", "saq", "peers.saq.settings"),
        settings="concurrency 100, results kept for ten minutes, as they are by default",
        keeps="Jobs of a worker that died are found by a sweep, once a minute, and retried only if retries were set.",
        loses="A job whose enqueue failed after the commit beside it; all jobs that Redis loses. No fence.",
        pace=1800,
        one=enqueue,
        many=lambda rows: at_once(map(enqueue, rows)),
    ),
)
