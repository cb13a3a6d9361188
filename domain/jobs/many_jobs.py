"""Cancels or retries all jobs that match a filter: page by page, each job in a transaction of its own."""

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from domain.audit.model import Actor
from domain.db.database import Database
from domain.errors import Refused
from domain.jobs.acceptance import RequestOrigin
from domain.jobs.model import Job
from domain.jobs.service import JobService
from domain.jobs.stats import MAX_COUNTED
from domain.jobs.store.jobs import Change, JobFilter, JobRepository
from domain.jobs.store.overview import Count

#: Maximum number of jobs that one request changes: 100 take about half a second.
PAGE: Final = 100


@dataclass(frozen=True)
class Changed:
    """What became of one page of jobs."""

    accepted: int
    #: Number of refused jobs, by the code of the error.
    refused: Mapping[str, int]
    #: The next page begins with the first job that is older than this one; None if there is no next page.
    next_before: UUID | None


class ManyJobs:
    """Cancels or retries many jobs with one request."""

    def __init__(self, database: Database, jobs: JobService) -> None:
        self._database = database
        self._change: Mapping[Change, Callable[..., Coroutine[Any, Any, Job]]] = {
            Change.CANCEL: jobs.cancel,
            Change.RETRY: jobs.retry,
        }

    async def count(self, change: Change, filters: JobFilter, *, project_id: UUID) -> Count:
        """Count the jobs that would be changed, up to `MAX_COUNTED`."""
        async with self._database.transaction() as session:
            repository = JobRepository(session)
            ids = await repository.ids_for(change, filters, project_id, limit=MAX_COUNTED + 1)
        return Count(min(len(ids), MAX_COUNTED), more=len(ids) > MAX_COUNTED)

    async def change(self, change: Change, filters: JobFilter, *, before: UUID | None = None, actor: Actor) -> Changed:
        """Change the newest matching jobs that are older than ``before``, up to `PAGE`.

        Each job ends, or is retried, once; but a request that is sent again also changes what matches since.
        """
        async with self._database.transaction() as session:
            ids = await JobRepository(session).ids_for(change, filters, actor.project_id, before=before, limit=PAGE + 1)
        accepted, refused = 0, Counter[str]()
        for job_id in ids[:PAGE]:
            try:
                await self._change[change](job_id, origin=RequestOrigin(actor))
                accepted += 1
            except Refused as error:
                refused[error.code] += 1
        return Changed(accepted, dict(refused), ids[PAGE - 1] if len(ids) > PAGE else None)
