"""A worker in the test's own process, for tests that need not kill it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from domain.settings import Settings
from domain.tasks import cancel_and_wait
from worker.consumer import ArqConsumer, Supervisor
from worker.main import arq_settings, open_worker
from worker.runner import Runner


@asynccontextmanager
async def running_worker(settings: Settings) -> AsyncIterator[Runner]:
    """Run a worker for the duration of the block."""
    async with open_worker(settings) as runner:
        consumer = ArqConsumer(runner, arq_settings(settings, runner.queue.keys))
        main = asyncio.create_task(consumer.main())
        try:
            yield runner
        finally:
            await cancel_and_wait([main])
            await runner.close()
            await asyncio.gather(*consumer.tasks.values(), return_exceptions=True)
            await consumer.pool.aclose(close_connection_pool=True)


@asynccontextmanager
async def supervised(settings: Settings) -> AsyncIterator[None]:
    """Run a whole worker, whose supervisor restarts the consumer after an error of Redis."""
    async with open_worker(settings) as runner:
        supervisor = Supervisor(runner, arq_settings(settings, runner.queue.keys), drain=5)
        life = asyncio.create_task(supervisor.run())
        try:
            yield
        finally:
            supervisor._on_signal()
            await life
