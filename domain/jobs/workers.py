"""Which workers there are, and what they run."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import load_only

from domain.db.database import Database
from domain.jobs.model import Job, Worker
from domain.jobs.states import JobStatus
from domain.jobs.store.workers import WorkerRepository

#: Maximum number of running jobs that are read: a thousand workers with ten slots each.
_MAX_JOBS: Final = 10_000
_COLUMNS: Final = (Job.id, Job.kind, Job.volume_id, Job.parent_id, Job.started_at, Job.worker_id)


@dataclass(frozen=True)
class WorkerStatus:
    """A worker, whether its heartbeat is current, and the jobs whose leases it holds."""

    row: Worker
    is_alive: bool
    jobs: Sequence[Job]


class WorkerDirectory:
    """The workers that PostgreSQL knows: those that are alive, and those that have fallen silent within the hour."""

    def __init__(self, database: Database, *, lease: float) -> None:
        """Prepare the directory; a worker is alive for ``lease`` seconds after a heartbeat."""
        self._database = database
        self._lease = lease

    async def all(self, project_id: UUID | None = None) -> Sequence[WorkerStatus]:
        """Return the workers, the one that started first first, with the running jobs of a project; None means all.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer.
        """
        async with self._database.transaction() as session:
            rows = await WorkerRepository(session, lease=self._lease).all()
            jobs = await _running(session, project_id)
        return [WorkerStatus(worker, is_alive, jobs.get(worker.id, ())) for worker, is_alive in rows]

    async def count_alive(self) -> int:
        """Return the number of workers that are alive.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer.
        """
        async with self._database.transaction() as session:
            return await WorkerRepository(session, lease=self._lease).count_alive()


async def _running(session: AsyncSession, project_id: UUID | None) -> Mapping[UUID | None, Sequence[Job]]:
    """Return the jobs that workers hold, by worker, those that started first first."""
    query = select(Job).where(Job.status == JobStatus.RUNNING, Job.lease_expires_at.is_not(None))
    if project_id is not None:
        query = query.where(Job.project_id == project_id)
    found: defaultdict[UUID | None, list[Job]] = defaultdict(list)
    for job in await session.scalars(query.options(load_only(*_COLUMNS)).order_by(Job.started_at).limit(_MAX_JOBS)):
        found[job.worker_id].append(job)
    return found
