"""A worker inside the test's own process, for what needs no kill."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from domain.background import end
from domain.settings import Settings
from worker.delivery import Delivery
from worker.main import arq_settings, workshop
from worker.runner import Runner


@asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[Runner]:
    """Have a worker work as long as the block lasts."""
    async with workshop(settings) as runner:
        arq = Delivery(runner, arq_settings(settings))
        delivery = asyncio.create_task(arq.main())
        try:
            yield runner
        finally:
            await end([delivery])
            await runner.close()
            await asyncio.gather(*arq.tasks.values(), return_exceptions=True)
            await arq.pool.aclose(close_connection_pool=True)
