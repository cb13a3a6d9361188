"""A node's agent in the test's own process, for tests that need not kill it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import PageRequest
from domain.services import Services
from domain.settings import Settings
from domain.tasks import cancel_and_wait
from domain.volumes.attachments.model import Attachment
from domain.volumes.attachments.repository import AttachmentFilter
from worker.consumer import ArqConsumer
from worker.main import arq_settings
from worker.node.host.host import HostProtocol
from worker.node.main import open_node
from worker.runner import Runner


async def attachments_of(services: Services, volume_id: UUID) -> list[Attachment]:
    """Return who has a volume."""
    request = PageRequest(scope="test", limit=10, cursor=None)
    filters = AttachmentFilter(volume_id=volume_id)
    page, _ = await services.attachments.list_attachments(filters, request, project_id=DEFAULT_PROJECT)
    return list(page.items)


@asynccontextmanager
async def running_node(settings: Settings, host: HostProtocol) -> AsyncIterator[Runner]:
    """Run a node's agent for the duration of the block."""
    async with open_node(settings, host) as runner:
        consumer = ArqConsumer(runner, arq_settings(settings, runner.queue.keys))
        main = asyncio.create_task(consumer.main())
        try:
            yield runner
        finally:
            await cancel_and_wait([main])
            await runner.close()
            await asyncio.gather(*consumer.tasks.values(), return_exceptions=True)
            await consumer.pool.aclose(close_connection_pool=True)
