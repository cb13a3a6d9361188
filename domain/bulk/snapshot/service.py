"""The use cases of bulk snapshots: a user asks for one, or a schedule. `BulkService` has the rest."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.kinds import SNAPSHOT
from domain.bulk.selection import require_within, retry_params
from domain.bulk.snapshot.request import BulkSnapshotRequest, stamped
from domain.db.database import Database
from domain.errors import Invalid
from domain.jobs.idempotency import ANONYMOUS, RequestOrigin, idempotent_transaction
from domain.jobs.model import Job, new_job, retry_columns
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue


class BulkSnapshotService:
    """Snapshots of many volumes by one job, for HTTP and for schedules."""

    def __init__(self, database: Database, queue: JobQueue, *, max_attempts: int, max_concurrent: int) -> None:
        """``max_concurrent``: the most that a request may ask for."""
        self._database = database
        self._queue = queue
        self._max_attempts = max_attempts
        self._max_concurrent = max_concurrent

    async def request_snapshots(self, request: BulkSnapshotRequest, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a bulk snapshot.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds, or something is to be kept, which only a schedule can.
        """
        if request.keep.named is not None:
            raise Invalid(f"`{request.keep.named}` is for schedules: they delete their own.", field=request.keep.named)
        async with idempotent_transaction(self._database, origin) as acceptance:
            acceptance.job = job = await self.add(acceptance.session, request, created_by=origin.caller)
        await self._queue.dispatch([job.dispatch])
        return job

    async def add(self, session: AsyncSession, request: BulkSnapshotRequest, **columns: Any) -> Job:
        """Write the job down, with these columns; a schedule's has ``schedule_id`` and ``scheduled_for``.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(request)
        schedule_id = columns.get("schedule_id")
        moment = columns.get("scheduled_for") or datetime.now(UTC)
        # In the params too, because a retry is for the same schedule, and yet no run of it.
        params = request.to_json() | {"schedule_id": None if schedule_id is None else str(schedule_id)}
        return await self._add(session, params, moment, **columns)

    async def retry_snapshots(self, session: AsyncSession, ended: Job) -> Job:
        """Take those that were not taken, as snapshots of now with a name of now."""
        return await self._add(session, retry_params(ended), datetime.now(UTC), **retry_columns(ended))

    def check(self, request: BulkSnapshotRequest) -> None:
        """Refuse what cannot be asked for here.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        require_within(request.max_concurrent, self._max_concurrent)

    async def _add(self, session: AsyncSession, params: dict[str, Any], moment: datetime, **columns: Any) -> Job:
        params |= {"snapshot_name": stamped(params["name"], moment.astimezone(UTC)), "fence": 0}
        return await JobRepository(session).add(new_job(SNAPSHOT, params, max_attempts=self._max_attempts, **columns))
