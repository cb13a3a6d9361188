"""What users ask of the job book: look, cancel, retry."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import func

from domain.database import Database, is_outage
from domain.errors import JobEnded, JobIsPart, JobNotFound, JobNotRetryable
from domain.grouped import Grouped
from domain.jobs.acceptance import NOBODY, Origin, accepting
from domain.jobs.kinds import Kinds
from domain.jobs.model import Job
from domain.jobs.orders import WorkOrder
from domain.jobs.parents import ParentRepository
from domain.jobs.queue import JobQueue
from domain.jobs.repository import JobFilter, JobRepository
from domain.jobs.states import RETRYABLE, JobStatus
from domain.paging import Page, PageRequest

#: So many jobs are read by one statement.
_MOST: Final = 100


class JobService:
    """Jobs as their users see them."""

    def __init__(self, database: Database, queue: JobQueue, kinds: Kinds) -> None:
        self._database = database
        self._queue = queue
        self._kinds = kinds
        self._reads = Grouped(self._read_all, most=_MOST, is_common=is_outage)

    async def get(self, job_id: UUID) -> Job:
        """Read one job.

        Raises:
            JobNotFound: there is none.
        """
        return _found(await self._reads(job_id), job_id)

    async def _read_all(self, job_ids: Sequence[UUID]) -> Sequence[Job | None]:
        async with self._database.transaction() as session:
            jobs = {job.id: job for job in await JobRepository(session).some(job_ids)}
        return [jobs.get(job_id) for job_id in job_ids]

    async def list_jobs(self, wanted: JobFilter, request: PageRequest) -> Page[Job]:
        """List jobs, newest first.

        Raises:
            BadCursor: the cursor is not from this list.
        """
        before = request.before
        async with self._database.transaction() as session:
            return request.page(await JobRepository(session).page(wanted, before=before, limit=request.limit))

    async def cancel(self, job_id: UUID, *, origin: Origin = NOBODY) -> Job:
        """Ask for a job's end. One that never started ends here; otherwise its worker is told.

        Raises:
            JobNotFound: there is none.
            JobEnded: it is too late.
            JobIsPart: it is a lane of another job.
        """
        async with accepting(self._database, origin) as acceptance:
            session = acceptance.session
            job = _found(await JobRepository(session).get_for_update(job_id), job_id)
            if job.ended:
                raise JobEnded(job_status=job.status)
            if job.parent_id is not None:
                raise JobIsPart(job_id=job.parent_id)
            job.version += 1
            job.cancel_requested_at = func.now()
            if job.status is JobStatus.QUEUED and job.started_at is None and job.kind in self._kinds:
                job.status = JobStatus.CANCELLED
                job.finished_at = func.now()
                await self._kinds[job.kind].abandon(session, [(WorkOrder.of(job), None)])
            elif job.status is JobStatus.QUEUED:
                # It was at work before and may have left traces: a worker finds out, at once instead of at run_at.
                job.run_at = job.rung_at = func.now()
            await ParentRepository(session).hurry(job.id)
            await session.flush()
            await session.refresh(job)
            acceptance.job = job
        await self._tell(job)
        return job

    async def retry(self, job_id: UUID, *, origin: Origin = NOBODY) -> Job:
        """Request once more what an ended job did not achieve, as a new job that is linked to it.

        Raises:
            JobNotFound: there is none.
            JobNotRetryable: it is still going on, it succeeded, or it was retried before.
            Refused: what it asked for cannot be asked for any more.
        """
        async with accepting(self._database, origin) as acceptance:
            session = acceptance.session
            jobs = JobRepository(session)
            job = _found(await jobs.get_for_update(job_id), job_id)
            if job.status not in RETRYABLE or job.kind not in self._kinds:
                raise JobNotRetryable(job_status=job.status)
            if (successor := await jobs.retried_by(job_id)) is not None:
                raise JobNotRetryable("This job was retried before.", job_id=successor)
            retry = acceptance.job = await self._kinds[job.kind].again(session, job)
        await self._tell(retry)
        return retry

    async def _tell(self, job: Job) -> None:
        if job.status is JobStatus.QUEUED:
            await self._queue.ring([job.ring])
        await self._queue.announce(job.id)


def _found(job: Job | None, job_id: UUID) -> Job:
    if job is None:
        raise JobNotFound(job_id)
    return job
