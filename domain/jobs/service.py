"""User requests about jobs: get, list, cancel, retry."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import func

from domain.batching import Batcher
from domain.db.database import Database, failed_transiently
from domain.db.pagination import Page, PageRequest
from domain.errors import JobEnded, JobIsChild, JobNotRetryable
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin, accepting
from domain.jobs.attempt import ClaimedJob
from domain.jobs.kinds import JobHandlers
from domain.jobs.model import Job
from domain.jobs.states import RETRYABLE, JobStatus
from domain.jobs.store.jobs import JobFilter, JobRepository, require_job
from domain.jobs.store.parents import ParentRepository
from domain.jobs.transport.job_queue import JobQueue

#: Maximum number of jobs read in one statement.
_MAX_BATCH: Final = 100
#: Maximum number of jobs that a search looks at: so many take some 20 ms.
SEARCHED: Final = 20_000


class JobService:
    """The use cases of jobs, for the API and the command line."""

    def __init__(self, database: Database, queue: JobQueue, handlers: JobHandlers) -> None:
        self._database = database
        self._queue = queue
        self._handlers = handlers
        self._reads = Batcher(self._read_batch, max_batch=_MAX_BATCH, fails_all=failed_transiently)

    async def get(self, job_id: UUID, *, project_id: UUID) -> Job:
        """Read one job of a project.

        Raises:
            JobNotFound: no such job.
        """
        return require_job(await self._reads(job_id), job_id, project_id)

    async def _read_batch(self, job_ids: Sequence[UUID]) -> Sequence[Job | None]:
        async with self._database.transaction() as session:
            jobs = {job.id: job for job in await JobRepository(session).get_many(job_ids)}
        return [jobs.get(job_id) for job_id in job_ids]

    async def list_jobs(self, filters: JobFilter, request: PageRequest, *, project_id: UUID) -> Page[Job]:
        """List the jobs of a project, newest first; look at `SEARCHED` jobs at most where no index has the filter.

        A page may then have fewer jobs than wanted, or none, and nevertheless a next one, which looks further.

        Raises:
            BadCursor: the cursor is not from this list.
        """
        before, limit = request.before, request.limit
        scanned = filters.kind is not None or filters.created_by is not None or filters.status is JobStatus.SUCCEEDED
        has_index = not scanned or filters.volume_id is not None or filters.schedule_id is not None
        async with self._database.transaction() as session:
            jobs = JobRepository(session)
            oldest = None if has_index else await jobs.nth_newest(SEARCHED, project_id, before=before)
            found = request.page(await jobs.page(filters, project_id, before=before, limit=limit, down_to=oldest))
        if oldest is None or found.next_cursor is not None:
            return found
        return Page(found.items, request.continued_below(oldest))

    async def last_failures(self, volume_ids: Collection[UUID], *, project_id: UUID) -> Mapping[UUID, Job]:
        """Return the newest job of each of these volumes that failed, was cancelled or succeeded in part."""
        if not volume_ids:
            return {}
        async with self._database.transaction() as session:
            return await JobRepository(session).last_failures(volume_ids, project_id)

    async def related(self, job: Job, *, limit: int) -> tuple[UUID | None, Sequence[Job]]:
        """Return the id of the retry of a job, if any, and its newest children."""
        async with self._database.transaction() as session:
            jobs = JobRepository(session)
            children = await jobs.page(JobFilter(parent_id=job.id), job.project_id, before=None, limit=limit)
            return await jobs.retried_by(job.id), children[:limit]

    async def cancel(self, job_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Request the cancellation of a job: at once if it never started; otherwise its worker ends it.

        Raises:
            JobNotFound: no such job.
            JobEnded: it has already ended.
            JobIsChild: it is a lane of another job.
        """
        async with accepting(self._database, origin) as request:
            session = request.session
            job = await JobRepository(session).lock(job_id, origin.actor.project_id)
            if job.ended:
                raise JobEnded(job_status=job.status)
            if job.parent_id is not None:
                raise JobIsChild(job_id=job.parent_id)
            never_started = job.status is JobStatus.QUEUED and job.started_at is None and job.kind in self._handlers
            job.request_cancellation(at_once=never_started)
            if never_started:
                await self._handlers[job.kind].abandon(session, [(ClaimedJob.from_row(job), None)])
            elif job.status is JobStatus.QUEUED:
                # An earlier attempt may have left data on the storage: have a worker check now instead of at run_at.
                job.run_at = job.dispatched_at = func.now()
            await ParentRepository(session).wake_lanes(job.id)
            await session.flush()
            await session.refresh(job)
            request.job = job
        await self._dispatch(job)
        return job

    async def retry(self, job_id: UUID, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Request again what an ended job did not achieve, as a new job that refers to it.

        Raises:
            JobNotFound: no such job.
            JobNotRetryable: it has not ended, it succeeded, it was already retried, or it is a lane of another job.
            Refused: its request is no longer possible, or the project has no room for it.
        """
        async with accepting(self._database, origin) as request:
            session = request.session
            jobs = JobRepository(session)
            job = await jobs.lock(job_id, origin.actor.project_id)
            if job.parent_id is not None:
                raise JobNotRetryable("A lane is a child of a bulk job; retry the bulk job.", job_id=job.parent_id)
            if job.status not in RETRYABLE or job.kind not in self._handlers:
                raise JobNotRetryable(job_status=job.status)
            if (successor := await jobs.retried_by(job_id)) is not None:
                raise JobNotRetryable("This job was already retried.", job_id=successor)
            retry = request.job = await self._handlers[job.kind].retry(session, job, request.room)
        await self._dispatch(retry)
        return retry

    async def _dispatch(self, job: Job) -> None:
        if job.status is JobStatus.QUEUED:
            await self._queue.dispatch([job.message])
        await self._queue.announce(job.id)
