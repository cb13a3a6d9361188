"""Requests and retries of bulk snapshots; `BulkService` has the rest of their life cycle."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.kinds import SNAPSHOT
from domain.bulk.selection import require_within, retry_params
from domain.bulk.snapshot.request import BulkSnapshotRequest, stamped
from domain.db.database import Database
from domain.errors import Invalid
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin, accepting
from domain.jobs.model import Job, new_job, retry_columns
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue


class BulkSnapshotService:
    """Requests for bulk snapshots, for the API and for schedules."""

    def __init__(self, database: Database, queue: JobQueue, *, max_attempts: int, max_concurrent: int) -> None:
        """Create the service; ``max_concurrent`` is the maximum that a request may have."""
        self._database = database
        self._queue = queue
        self._max_attempts = max_attempts
        self._max_concurrent = max_concurrent

    async def request_snapshots(self, request: BulkSnapshotRequest, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a bulk snapshot.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds, or there is a retention rule, which only schedules may have.
        """
        if (keep := request.keep.first_field) is not None:
            raise Invalid(f"`{keep}` is for schedules: they delete only their own snapshots.", field=keep)
        async with accepting(self._database, origin) as accepted:
            accepted.job = job = await self.add(accepted.session, request, created_by=origin.caller)
        await self._queue.dispatch([job.message])
        return job

    async def add(self, session: AsyncSession, request: BulkSnapshotRequest, **columns: Any) -> Job:
        """Insert the job in the caller's transaction; a schedule passes ``schedule_id`` and ``scheduled_for``.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(request)
        schedule_id = columns.get("schedule_id")
        time = columns.get("scheduled_for") or datetime.now(UTC)
        # Also in the params: a retry takes snapshots for the same schedule, but its job is not a run of the schedule.
        params = request.to_json() | {"schedule_id": None if schedule_id is None else str(schedule_id)}
        return await self._add(session, params, time, **columns)

    async def retry_snapshots(self, session: AsyncSession, ended: Job) -> Job:
        """Retry the snapshots that were not taken; they show the volumes as of now, and have a new time stamp."""
        return await self._add(session, retry_params(ended), datetime.now(UTC), **retry_columns(ended))

    def check(self, request: BulkSnapshotRequest) -> None:
        """Check a request against the configured limit.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        require_within(request.max_concurrent, self._max_concurrent)

    async def _add(self, session: AsyncSession, params: dict[str, Any], time: datetime, **columns: Any) -> Job:
        params |= {"snapshot_name": stamped(params["name"], time.astimezone(UTC)), "fence_version": 0}
        return await JobRepository(session).add(new_job(SNAPSHOT, params, max_attempts=self._max_attempts, **columns))
