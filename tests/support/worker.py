"""A worker inside the test's own process, for what needs no kill."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from domain.settings import Settings
from domain.tasks import cancel_and_wait
from worker.consumer import ArqConsumer
from worker.main import arq_settings, open_worker
from worker.runner import Runner


@asynccontextmanager
async def running_worker(settings: Settings) -> AsyncIterator[Runner]:
    """Have a worker work as long as the block lasts."""
    async with open_worker(settings) as runner:
        arq = ArqConsumer(runner, arq_settings(settings))
        delivery = asyncio.create_task(arq.main())
        try:
            yield runner
        finally:
            await cancel_and_wait([delivery])
            await runner.close()
            await asyncio.gather(*arq.tasks.values(), return_exceptions=True)
            await arq.pool.aclose(close_connection_pool=True)
