"""What the jobs of a project do at the moment: read at most every few seconds, however many people look."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from domain.db.database import Database
from domain.jobs.model import Job, Worker
from domain.jobs.states import JobStatus
from domain.jobs.store.overview import Count, OverviewRepository
from domain.jobs.store.workers import WorkerRepository

#: How long an overview is shown again, in seconds.
_CACHE_SECONDS: Final = 3.0
_MAX_CACHED: Final = 1000
_MAX_RUNNING: Final = 100
_MAX_FAILED: Final = 5


@dataclass(frozen=True)
class Overview:
    """The jobs of a project, and the workers of the installation."""

    workers: Sequence[Worker]
    running: Sequence[Job]
    waiting: Count
    #: Since when the oldest waiting job is due, in seconds; None if none waits.
    oldest_seconds: float | None
    #: The jobs that were accepted in the last 24 hours, by how they ended.
    today: Mapping[JobStatus, Count]
    #: Some of those that have failed and were not retried, newest first.
    failed: Sequence[Job]


class OverviewService:
    """The overviews of one process."""

    def __init__(self, database: Database, *, lease: float) -> None:
        """Create the service; workers without a heartbeat for ``lease`` seconds count as gone."""
        self._database = database
        self._lease = lease
        self._locks = defaultdict[UUID, asyncio.Lock](asyncio.Lock)
        #: By project, each with a time of the monotonic clock until which it is shown.
        self._cache: dict[UUID, tuple[Overview, float]] = {}

    async def latest(self, project_id: UUID) -> Overview:
        """Return the overview of a project, as of at most `_CACHE_SECONDS` ago.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer in time.
        """
        async with self._locks[project_id]:
            cached = self._cache.get(project_id)
            if cached is not None and cached[1] > time.monotonic():
                return cached[0]
            overview = await self._read(project_id)
            self._cache[project_id] = overview, time.monotonic() + _CACHE_SECONDS
        if len(self._cache) > _MAX_CACHED:
            self._cache.clear()
        return overview

    async def _read(self, project_id: UUID) -> Overview:
        async with self._database.transaction() as session:
            repository = OverviewRepository(session, project_id)
            waiting, oldest = await repository.waiting()
            return Overview(
                workers=await WorkerRepository(session, lease=self._lease).alive(),
                running=await repository.running(_MAX_RUNNING),
                waiting=waiting,
                oldest_seconds=oldest,
                today=await repository.accepted_today(),
                failed=await repository.failed_today(_MAX_FAILED),
            )
