"""The work of all peers: update one row with the time at which the work began, and commit at once.

Only processes of the peers import this module; they get the URLs of the servers from the environment.
"""

import asyncio
import os
import threading
import time
from typing import Any, Final

DATABASE_URL: Final = os.environ.get("PEERS_DATABASE_URL", "")
REDIS_URL: Final = os.environ.get("PEERS_REDIS_URL", "")
#: Enough for two cores: 10 and 100 connections were no faster.
CONNECTIONS: Final = 20

_SET: Final = "UPDATE work SET begun_ns = {}, done_at = clock_timestamp() WHERE id = {}"


class Pooled:
    """The work in an event loop: asyncpg, which prepares the statement once per connection."""

    def __init__(self) -> None:
        self._pool: Any = None

    async def open(self, *_: object) -> None:
        """Connect; accepts the arguments of any peer's start-up hook."""
        import asyncpg  # noqa: PLC0415 - not every peer has it

        async def no_reset(_: Any) -> None:
            """Return connections to the pool without a reset, which would cost a round trip per job."""

        self._pool = await asyncpg.create_pool(DATABASE_URL, min_size=CONNECTIONS, max_size=CONNECTIONS, reset=no_reset)

    async def do(self, row: int) -> None:
        """Update the row."""
        await self._pool.execute(_SET.format("$1", "$2"), time.time_ns(), row)


class Threaded:
    """The work in threads: psycopg, with one connection per thread."""

    def __init__(self) -> None:
        self._local = threading.local()

    def do(self, row: int) -> None:
        """Update the row."""
        begun = time.time_ns()
        if not hasattr(self._local, "connection"):
            import psycopg  # noqa: PLC0415 - not every peer has it

            # Prepared at the first use, as in asyncpg.
            self._local.connection = psycopg.connect(DATABASE_URL, autocommit=True, prepare_threshold=0)
        self._local.connection.execute(_SET.format("%s", "%s"), (begun, row))


async def at_once(coroutines: Any, width: int = 50) -> None:
    """Run many coroutines, ``width`` of them at a time."""
    remaining = iter(coroutines)

    async def run_some() -> None:
        for coroutine in remaining:
            await coroutine

    await asyncio.gather(*(run_some() for _ in range(width)))
