"""taskiq: asyncio workers, on a Redis list and on a Redis stream."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from taskiq import TaskiqEvents
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from peers.peer import Peer
from peers.work import REDIS_URL, Pooled, at_once

work = Pooled()
# Without a timeout: by default redis-py breaks off after five seconds of waiting, and messages are late after that.
on_list = ListQueueBroker(REDIS_URL, socket_timeout=None)
# From the stream's beginning: the jobs are there before the worker is.
on_stream = RedisStreamBroker(REDIS_URL, consumer_id="0", socket_timeout=None)


async def update(row: int) -> None:
    """Do the work."""
    await work.do(row)


for _broker in (on_list, on_stream):
    _broker.register_task(update, "update")
    _broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, work.open)


def peer(name: str, variable: str, **words: Any) -> Peer:
    """Make a peer of one of the brokers."""
    broker = globals()[variable]
    task = broker.find_task("update")

    @asynccontextmanager
    async def connected() -> AsyncIterator[None]:
        await broker.startup()
        yield
        await broker.shutdown()

    def many(rows: Iterable[int]) -> Any:
        return at_once(task.kiq(row) for row in rows)

    options = ("--workers", "1", "--max-async-tasks", "100", "--log-level", "ERROR")
    return Peer(
        name=name,
        worker=("-m", "taskiq", "worker", *options, f"peers.taskiq:{variable}"),
        settings="1 worker process, 100 tasks at once, uvloop, no socket timeout, no results kept",
        one=task.kiq,
        many=many,
        connected=connected,
        **words,
    )


PEERS = (
    peer(
        "taskiq (list)",
        "on_list",
        pace=1200,
        keeps="Nothing: a message is gone from Redis when a worker has taken it.",
        loses="Every job that a dying worker had taken; all jobs that Redis loses.",
    ),
    peer(
        "taskiq (stream)",
        "on_stream",
        pace=1200,
        keeps="Unacknowledged messages of a worker that died go to another one after ten minutes.",
        loses="All jobs that Redis loses. Jobs longer than ten minutes run twice, with no fence.",
    ),
)
