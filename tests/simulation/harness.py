"""What all examples share; each example runs in a world of its own, one after the other."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from domain.settings import Settings
from tests.simulation.cluster import LEASE_SECONDS
from tests.simulation.doubles import FaultyDatabase


class Harness:
    """One event loop, one database, and a count of the steps taken."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.model_copy(
            update={"lease_seconds": LEASE_SECONDS, "max_attempts": 3, "busy_seconds": LEASE_SECONDS}
        )
        self.loop = asyncio.Runner()
        self.database = FaultyDatabase(settings.database_url)
        self._engine = create_async_engine(settings.database_url, isolation_level="AUTOCOMMIT")
        self.observer = self.loop.run(self._connect())
        self.steps = 0

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.loop.run(coroutine)

    def close(self) -> None:
        self.run(self._close())
        self.loop.close()

    async def _connect(self) -> AsyncConnection:
        return await self._engine.connect()

    async def _close(self) -> None:
        await self.observer.close()
        await self._engine.dispose()
        await self.database.close()
