"""arq with its defaults, tuned, and as in a textbook: tuned, with a SQLAlchemy session per job."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker, func

from peers.peer import Peer
from peers.textbook import Sessions
from peers.work import REDIS_URL, Pooled, at_once

SERVER = RedisSettings.from_dsn(REDIS_URL)
pooled = Pooled()
sessions = Sessions()
queue: dict[str, ArqRedis] = {}


async def update(_: dict[str, Any], row: int) -> None:
    """Do the work."""
    await pooled.do(row)


async def update_in_session(_: dict[str, Any], row: int) -> None:
    """Do the work in a session of SQLAlchemy."""
    await sessions.do(row)


DEFAULTS: dict[str, Any] = {"functions": [update], "on_startup": pooled.open, "redis_settings": SERVER}
TUNED: dict[str, Any] = DEFAULTS | {"max_jobs": 100, "poll_delay": 0.01, "keep_result": 0}
TEXTBOOK: dict[str, Any] = TUNED | {"functions": [func(update_in_session, name="update")], "on_startup": sessions.open}


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Open the pool that enqueues."""
    queue["pool"] = await create_pool(SERVER)
    yield
    await queue["pool"].aclose()


def enqueue(row: int) -> Any:
    """Enqueue one job."""
    return queue["pool"].enqueue_job("update", row)


def enqueue_many(rows: Iterable[int]) -> Any:
    """Enqueue jobs concurrently."""
    return at_once(enqueue(row) for row in rows)


def peer(name: str, settings: str, expected_rate: int) -> Peer:
    """Return the peer with one of the settings."""
    return Peer(
        name=f"arq ({name})",
        worker=("-m", "peers", "arq", "work", name),
        settings=settings,
        keeps="A job of a dead worker runs again when its lock expires, after five minutes. Failures are final.",
        loses="A job whose enqueueing fails after the commit that it belongs to; all jobs that Redis loses. No fence.",
        expected_rate=expected_rate,
        enqueue=enqueue,
        enqueue_many=enqueue_many,
        connected=connected,
    )


AS_TUNED = "max_jobs 100, polls every 10 ms, uvloop, no results kept"
PEERS = (
    peer("defaults", "10 jobs at once, polls every 0.5 s, keeps results for an hour", 200),
    peer("tuned", AS_TUNED, 950),
    peer("textbook", f"{AS_TUNED}; a SQLAlchemy session for each job: get, change, commit", 270),
)


def run_worker(name: str) -> None:
    """Run the worker."""
    if name != "defaults":
        uvloop.install()
    Worker(**{"defaults": DEFAULTS, "tuned": TUNED, "textbook": TEXTBOOK}[name]).run()
