"""Projects take turns: many jobs of one do not delay the next job of another by more than is at work already."""

import asyncio

from sqlalchemy import text

from domain.audit.model import Actor
from domain.jobs.acceptance import RequestOrigin
from domain.jobs.model import Job
from domain.services import Services
from domain.settings import Settings
from domain.volumes.service import NewVolume
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB
from tests.integration.project_builders import a_project

SLOTS = 5
#: How many of another project's jobs were started while this one waited.
OVERTAKEN_BY = text("""
    SELECT count(*) FROM jobs AS others JOIN jobs AS mine ON mine.id = :job_id
    WHERE others.project_id <> mine.project_id AND others.started_at BETWEEN mine.created_at AND mine.started_at
""")


async def created(services: Services, origin: RequestOrigin, name: str) -> Job:
    return await services.volumes.request_create(NewVolume(name, MIB, backend="null"), origin=origin)


async def test_job_waits_for_no_more_than_the_jobs_at_work(
    services: Services, settings: Settings, running_worker: RunningWorker
) -> None:
    """The other project's two hundred jobs were there first, and the worker has five slots."""
    slow = settings.model_copy(update={"backends": {"null": "faulty+null:?delay_ms=100"}, "max_jobs": SLOTS})
    one, other = [RequestOrigin(Actor("me", project_id=(await a_project(services, name)).id)) for name in ("a", "b")]
    async with services.watcher.watching(), running_worker(slow):
        await services.directory.refresh()
        flood = await asyncio.gather(*(created(services, one, f"flood-{number}") for number in range(200)))
        await services.watcher.ended(flood[0].id, 30)
        for number in range(3):
            mine = await created(services, other, f"mine-{number}")
            await services.watcher.ended(mine.id, 30)
            async with services.database.transaction() as session:
                assert await session.scalar(OVERTAKEN_BY, {"job_id": mine.id}) <= 2 * SLOTS
        still_waiting = await services.stats.latest()

    assert still_waiting is not None
    assert still_waiting.queue_depth > 50
