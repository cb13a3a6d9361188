"""The use cases of bulk snapshots: a user asks for one, or a schedule. `BulkService` has the rest."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.kinds import SNAPSHOT
from domain.bulk.selection import require_within, rest_of
from domain.database import Database
from domain.errors import Invalid
from domain.jobs.acceptance import NOBODY, Origin, accepting
from domain.jobs.model import Job, again, new_job
from domain.jobs.queue import JobQueue
from domain.jobs.repository import JobRepository
from domain.snapshots.policy import BulkSnapshot, stamped


class BulkSnapshotService:
    """Snapshots of many volumes by one job, for HTTP and for schedules."""

    def __init__(self, database: Database, queue: JobQueue, *, max_attempts: int, max_concurrent: int) -> None:
        """``max_concurrent``: the most that a request may ask for."""
        self._database = database
        self._queue = queue
        self._max_attempts = max_attempts
        self._max_concurrent = max_concurrent

    async def request_snapshots(self, wanted: BulkSnapshot, *, origin: Origin = NOBODY) -> Job:
        """Accept a bulk snapshot.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds, or something is to be kept, which only a schedule can.
        """
        if wanted.keep.named is not None:
            raise Invalid(f"`{wanted.keep.named}` is for schedules: they delete their own.", field=wanted.keep.named)
        async with accepting(self._database, origin) as acceptance:
            acceptance.job = job = await self.add(acceptance.session, wanted, created_by=origin.caller)
        await self._queue.ring([job.ring])
        return job

    async def add(self, session: AsyncSession, wanted: BulkSnapshot, **columns: Any) -> Job:
        """Write the job down, with these columns; a schedule's has ``schedule_id`` and ``scheduled_for``.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(wanted)
        schedule_id = columns.get("schedule_id")
        moment = columns.get("scheduled_for") or datetime.now(UTC)
        # In the params too, because a retry is for the same schedule, and yet no run of it.
        params = wanted.params() | {"schedule_id": None if schedule_id is None else str(schedule_id)}
        return await self._add(session, params, moment, **columns)

    async def again_snapshots(self, session: AsyncSession, ended: Job) -> Job:
        """Take those that were not taken, as snapshots of now with a name of now."""
        return await self._add(session, rest_of(ended), datetime.now(UTC), **again(ended))

    def check(self, wanted: BulkSnapshot) -> None:
        """Refuse what cannot be asked for here.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        require_within(wanted.max_concurrent, self._max_concurrent)

    async def _add(self, session: AsyncSession, params: dict[str, Any], moment: datetime, **columns: Any) -> Job:
        params |= {"snapshot_name": stamped(params["name"], moment.astimezone(UTC)), "fence": 0}
        return await JobRepository(session).add(new_job(SNAPSHOT, params, max_attempts=self._max_attempts, **columns))
