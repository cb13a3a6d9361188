"""What all examples share; each has a world of its own in it, one after the other."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from domain.settings import Settings
from tests.simulation.doubles import FaultyDatabase
from tests.simulation.scene import LEASE_SECONDS


class Harness:
    """One loop, one database, and a count of the steps that were taken on it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.model_copy(
            update={"lease_seconds": LEASE_SECONDS, "max_attempts": 3, "busy_seconds": LEASE_SECONDS}
        )
        self.loop = asyncio.Runner()
        self.database = FaultyDatabase(settings.database_url)
        self._engine = create_async_engine(settings.database_url, isolation_level="AUTOCOMMIT")
        self.eyes = self.loop.run(self._open_eyes())
        self.steps = 0

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.loop.run(coroutine)

    def close(self) -> None:
        self.run(self._close())
        self.loop.close()

    async def _open_eyes(self) -> AsyncConnection:
        return await self._engine.connect()

    async def _close(self) -> None:
        await self.eyes.close()
        await self._engine.dispose()
        await self.database.close()
