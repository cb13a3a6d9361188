"""taskiq: asyncio workers, on a Redis list and on a Redis stream."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from taskiq import TaskiqEvents
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from peers.peer import Peer
from peers.work import REDIS_URL, Pooled, at_once

work = Pooled()
# Without a timeout: redis-py's default aborts a blocking read after 5 s, and messages are delayed after that.
on_list = ListQueueBroker(REDIS_URL, socket_timeout=None)
# From the start of the stream: the jobs are enqueued before the worker starts.
on_stream = RedisStreamBroker(REDIS_URL, consumer_id="0", socket_timeout=None)


async def update(row: int) -> None:
    """Do the work."""
    await work.do(row)


for _broker in (on_list, on_stream):
    _broker.register_task(update, "update")
    _broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, work.open)


def peer(name: str, variable: str, **fields: Any) -> Peer:
    """Return the peer with one of the brokers."""
    broker = globals()[variable]
    task = broker.find_task("update")

    @asynccontextmanager
    async def connected() -> AsyncIterator[None]:
        await broker.startup()
        yield
        await broker.shutdown()

    def enqueue_many(rows: Iterable[int]) -> Any:
        return at_once(task.kiq(row) for row in rows)

    options = ("--workers", "1", "--max-async-tasks", "100", "--log-level", "ERROR")
    return Peer(
        name=name,
        worker=("-m", "taskiq", "worker", *options, f"peers.taskiq:{variable}"),
        settings="1 worker process, 100 tasks at once, uvloop, no socket timeout, no results kept",
        enqueue=task.kiq,
        enqueue_many=enqueue_many,
        connected=connected,
        **fields,
    )


PEERS = (
    peer(
        "taskiq (list)",
        "on_list",
        expected_rate=1200,
        keeps="Nothing: a worker removes a message from Redis when it starts it.",
        loses="Every job that a dead worker had started; all jobs that Redis loses.",
    ),
    peer(
        "taskiq (stream)",
        "on_stream",
        expected_rate=1200,
        keeps="Unacknowledged messages of a dead worker go to another one after ten minutes.",
        loses="All jobs that Redis loses. Jobs longer than ten minutes run twice, without a fence.",
    ),
)
