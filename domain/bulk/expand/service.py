"""The use cases of bulk expansion: ask for one, or look at what it would do. `BulkService` has the rest."""

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
from domain.jobs.idempotency import ANONYMOUS, RequestOrigin, idempotent_transaction
from domain.jobs.model import Job, new_job, retry_columns
from domain.jobs.store.jobs import JobRepository
from domain.jobs.transport.job_queue import JobQueue

_PREVIEW_LIMIT: Final = 1000


@dataclass(frozen=True)
class Preview:
    """What a bulk expansion would do to one volume, as far as can be said without measuring it now."""

    volume_id: UUID
    name: str
    from_size: int
    to_size: int | None
    code: ItemCode | None
    used: int | None
    used_at: datetime | None


@dataclass(frozen=True)
class Plan:
    """What a bulk expansion would do. ``grows`` counts volumes, ``bytes`` what they would grow by."""

    total: int
    grows: int
    bytes: int
    measured_at: datetime | None
    items: list[Preview]


class BulkExpandService:
    """Bulk expansions, for HTTP and for the workers."""

    def __init__(self, database: Database, queue: JobQueue, *, max_attempts: int, max_concurrent: int) -> None:
        """``max_concurrent``: the most that a request may ask for."""
        self._database = database
        self._queue = queue
        self._max_attempts = max_attempts
        self._max_concurrent = max_concurrent

    # --- asking ------------------------------------------------------------------------------------------

    async def request_expand(self, request: BulkExpandRequest, *, origin: RequestOrigin = ANONYMOUS) -> Job:
        """Accept a bulk expansion.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(request)
        async with idempotent_transaction(self._database, origin) as acceptance:
            job = acceptance.job = await self.add(acceptance.session, request, created_by=origin.caller)
        await self._queue.dispatch([job.dispatch])
        return job

    async def add(self, session: AsyncSession, request: BulkExpandRequest, **columns: Any) -> Job:
        """Add the job of a bulk expansion in a transaction of somebody else's, who rings after the commit.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(request)
        return await JobRepository(session).add(self._job(request.to_json(), **columns))

    def check(self, request: BulkExpandRequest) -> None:
        """Refuse what cannot be asked for here.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        require_within(request.max_concurrent, self._max_concurrent)

    async def retry_expand(self, session: AsyncSession, ended: Job) -> Job:
        """Grow those that have not grown; a size that was written down for one stays binding."""
        return await JobRepository(session).add(self._job(retry_params(ended), **retry_columns(ended)))

    async def preview(self, request: BulkExpandRequest) -> Plan:
        """Say what a bulk expansion would do, from the last measurements. Touches nothing.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(request)
        total = grows = growth = 0
        oldest: datetime | None = None
        items: list[Preview] = []
        async with self._database.transaction() as session:
            async for volume in await session.stream_scalars(selected_volumes(request.selection)):
                decision = request.policy.decide(volume.size, volume.used, volume.autogrow)
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
        return new_job(EXPAND, {**params, "fence": 0}, max_attempts=self._max_attempts, **columns)
