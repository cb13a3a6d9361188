"""A job kind as an example: ``volume.measure`` asks a backend how much of a volume is in use, and records it."""

from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.database import Database
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin, accepting
from domain.jobs.attempt import ClaimedJob, Succeeded
from domain.jobs.kinds import JobHandler, SucceededJobs
from domain.jobs.model import Job, new_job, retry_columns
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.projects.quota import Room
from domain.storage.backends import Backends
from domain.storage.context import Grant
from domain.storage.errors import VolumeMissing
from domain.volumes.model import Volume
from domain.volumes.repository import VolumeRepository

KIND = "volume.measure"


class MeasureHandler(JobHandler):
    """The request, and the handler of its jobs. A measurement acquires no volume and leaves nothing on the storage."""

    def __init__(self, database: Database, queue: JobQueue, backends: Backends, *, max_attempts: int) -> None:
        self._database = database
        self._queue = queue
        self._backends = backends
        self._max_attempts = max_attempts

    async def request_measure(self, volume_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a measurement.

        Raises:
            VolumeNotFound: there is no such volume.
        """
        async with accepting(self._database, origin) as acceptance:
            volume = await VolumeRepository(acceptance.session).get(volume_id, origin.actor.project_id)
            job = acceptance.job = await self._add(acceptance.session, volume, created_by=origin.caller)
        await self._queue.dispatch([job.message])
        return job

    async def perform(self, job: ClaimedJob, grant: Grant) -> Succeeded:
        """Measure the volume; touches no database."""
        grant.check()
        volume_id = UUID(job.params["volume_id"])
        usage = (await self._backends.get(job.backend or "").measure([volume_id])).get(volume_id)
        if usage is None:
            raise VolumeMissing
        return Succeeded({"volume_id": str(volume_id), "used": usage.used})

    async def record(self, session: AsyncSession, succeeded: SucceededJobs) -> None:
        """Record what was measured, in the transaction that settles the jobs."""
        used = {UUID(result["volume_id"]): result["used"] for _, result in succeeded}
        await VolumeRepository(session).record_usage(used)

    async def retry(self, session: AsyncSession, ended: Job, _: Room) -> Job:
        """Request the measurement of an ended job once more."""
        volume = await VolumeRepository(session).get(UUID(ended.params["volume_id"]), ended.project_id)
        return await self._add(session, volume, **retry_columns(ended))

    async def _add(self, session: AsyncSession, volume: Volume, **columns: Any) -> Job:
        params = {"volume_id": str(volume.id), "fence_version": volume.version}
        columns |= {"project_id": volume.project_id, "backend": volume.backend}
        job = new_job(KIND, params, max_attempts=self._max_attempts, **columns)
        return await JobRepository(session).add(job)
