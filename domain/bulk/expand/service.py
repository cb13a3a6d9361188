"""Requests, retries and previews of bulk expansions; `BulkService` has the rest of their life cycle."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.expand.policy import BulkExpandRequest
from domain.bulk.kinds import EXPAND
from domain.bulk.ledger import selected_volumes
from domain.bulk.selection import require_within, retry_params
from domain.bulk.states import ItemCode
from domain.db.database import Database
from domain.jobs.acceptance import ANONYMOUS, RequestOrigin, accepting
from domain.jobs.model import Job, new_job, retry_columns
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue

_PREVIEW_LIMIT: Final = 1000


@dataclass(frozen=True)
class Preview:
    """What a bulk expansion would do to one volume, by its last measured usage."""

    volume_id: UUID
    name: str
    from_size: int
    to_size: int | None
    code: ItemCode | None
    used: int | None
    used_at: datetime | None


@dataclass(frozen=True)
class Plan:
    """What a bulk expansion would do: expand ``grows`` of ``total`` volumes, by ``bytes`` in all.

    ``measured_at`` is the time of the oldest measurement used; ``items`` has the first 1000 volumes.
    """

    total: int
    grows: int
    bytes: int
    measured_at: datetime | None
    items: list[Preview]


class BulkExpandService:
    """Requests for bulk expansions, for the API and for schedules."""

    def __init__(self, database: Database, queue: JobQueue, *, max_attempts: int, max_concurrent: int) -> None:
        """Create the service; ``max_concurrent`` is the maximum that a request may have."""
        self._database = database
        self._queue = queue
        self._max_attempts = max_attempts
        self._max_concurrent = max_concurrent

    async def request_expand(self, request: BulkExpandRequest, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a bulk expansion.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(request)
        async with accepting(self._database, origin) as accepted:
            job = accepted.job = await self.add(accepted.session, request, created_by=origin.caller)
        await self._queue.dispatch([job.message])
        return job

    async def add(self, session: AsyncSession, request: BulkExpandRequest, **columns: Any) -> Job:
        """Insert the job in the caller's transaction. The caller dispatches it after the commit.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(request)
        return await JobRepository(session).add(self._job(request.to_json(), **columns))

    def check(self, request: BulkExpandRequest) -> None:
        """Check a request against the configured limit.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        require_within(request.max_concurrent, self._max_concurrent)

    async def retry_expand(self, session: AsyncSession, ended: Job) -> Job:
        """Retry the volumes that were not expanded; the sizes stored for them stay binding."""
        return await JobRepository(session).add(self._job(retry_params(ended), **retry_columns(ended)))

    async def preview(self, request: BulkExpandRequest) -> Plan:
        """Return what a bulk expansion would do, by the last measured usage. Changes nothing.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(request)
        total = grows = growth = 0
        oldest: datetime | None = None
        items: list[Preview] = []
        async with self._database.transaction() as session:
            async for volume in await session.stream_scalars(selected_volumes(request.selection)):
                decision = request.policy.new_size(volume.size, volume.used, volume.autogrow)
                code, to_size = (decision, None) if isinstance(decision, ItemCode) else (None, decision)
                total += 1
                grows += to_size is not None
                growth += 0 if to_size is None else to_size - volume.size
                oldest = min(filter(None, (oldest, volume.used_at)), default=None)
                if len(items) < _PREVIEW_LIMIT:
                    items.append(
                        Preview(volume.id, volume.name, volume.size, to_size, code, volume.used, volume.used_at)
                    )
        return Plan(total, grows, growth, oldest, items)

    def _job(self, params: dict[str, Any], **columns: Any) -> Job:
        return new_job(EXPAND, {**params, "fence_version": 0}, max_attempts=self._max_attempts, **columns)
