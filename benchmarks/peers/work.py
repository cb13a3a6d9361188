"""The work that all peers share: update one row, committed at once, and write down when that was begun.

Nobody imports this but processes of the peers, to whom the environment says where the servers are.
"""

import asyncio
import os
import threading
import time
from typing import Any, Final

DATABASE_URL: Final = os.environ.get("PEERS_DATABASE_URL", "")
REDIS_URL: Final = os.environ.get("PEERS_REDIS_URL", "")
#: Enough for two cores: ten and a hundred were no faster.
CONNECTIONS: Final = 20

_SET: Final = "UPDATE work SET begun_ns = {}, done_at = clock_timestamp() WHERE id = {}"


class Pooled:
    """The work of a worker with an event loop: asyncpg, whose statements are prepared once for each connection."""

    def __init__(self) -> None:
        self._pool: Any = None

    async def open(self, *_: object) -> None:
        """Connect; takes whatever a peer's start-up hook is given."""
        import asyncpg  # noqa: PLC0415 - not every peer has it

        async def as_it_is(_: Any) -> None:
            """Give connections back without a reset, which would be one more round trip for each job."""

        self._pool = await asyncpg.create_pool(DATABASE_URL, min_size=CONNECTIONS, max_size=CONNECTIONS, reset=as_it_is)

    async def do(self, row: int) -> None:
        """Update the row."""
        await self._pool.execute(_SET.format("$1", "$2"), time.time_ns(), row)


class Threaded:
    """The work of a worker with threads: psycopg, a connection for each thread."""

    def __init__(self) -> None:
        self._here = threading.local()

    def do(self, row: int) -> None:
        """Update the row."""
        begun = time.time_ns()
        if not hasattr(self._here, "connection"):
            import psycopg  # noqa: PLC0415 - not every peer has it

            # Prepared at the first use, as asyncpg does it.
            self._here.connection = psycopg.connect(DATABASE_URL, autocommit=True, prepare_threshold=0)
        self._here.connection.execute(_SET.format("%s", "%s"), (begun, row))


async def at_once(coroutines: Any, width: int = 50) -> None:
    """Run many coroutines, ``width`` of them at a time."""
    left = iter(coroutines)

    async def lane() -> None:
        for coroutine in left:
            await coroutine

    await asyncio.gather(*(lane() for _ in range(width)))
