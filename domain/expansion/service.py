"""The use cases of bulk expansion: ask for one, or look at what it would do. `BulkService` has the rest."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.kinds import EXPAND
from domain.bulk.ledger import selected_volumes
from domain.bulk.selection import require_within, rest_of
from domain.bulk.states import Code
from domain.database import Database
from domain.expansion.policy import BulkExpansion
from domain.jobs.acceptance import NOBODY, Origin, accepting
from domain.jobs.model import Job, again, new_job
from domain.jobs.queue import JobQueue
from domain.jobs.repository import JobRepository

_PREVIEW_LIMIT: Final = 1000


@dataclass(frozen=True)
class Preview:
    """What a bulk expansion would do to one volume, as far as can be said without measuring it now."""

    volume_id: UUID
    name: str
    from_size: int
    to_size: int | None
    code: Code | None
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


class ExpansionService:
    """Bulk expansions, for HTTP and for the workers."""

    def __init__(self, database: Database, queue: JobQueue, *, max_attempts: int, max_concurrent: int) -> None:
        """``max_concurrent``: the most that a request may ask for."""
        self._database = database
        self._queue = queue
        self._max_attempts = max_attempts
        self._max_concurrent = max_concurrent

    # --- asking ------------------------------------------------------------------------------------------

    async def request_expand(self, wanted: BulkExpansion, *, origin: Origin = NOBODY) -> Job:
        """Accept a bulk expansion.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(wanted)
        async with accepting(self._database, origin) as acceptance:
            job = acceptance.job = await self.add(acceptance.session, wanted, created_by=origin.caller)
        await self._queue.ring([job.ring])
        return job

    async def add(self, session: AsyncSession, wanted: BulkExpansion, **columns: Any) -> Job:
        """Add the job of a bulk expansion in a transaction of somebody else's, who rings after the commit.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(wanted)
        return await JobRepository(session).add(self._job(wanted.params(), **columns))

    def check(self, wanted: BulkExpansion) -> None:
        """Refuse what cannot be asked for here.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        require_within(wanted.max_concurrent, self._max_concurrent)

    async def again_expand(self, session: AsyncSession, ended: Job) -> Job:
        """Grow those that have not grown; a size that was written down for one stays binding."""
        return await JobRepository(session).add(self._job(rest_of(ended), **again(ended)))

    async def preview(self, wanted: BulkExpansion) -> Plan:
        """Say what a bulk expansion would do, from the last measurements. Touches nothing.

        Raises:
            Invalid: ``max_concurrent`` is out of bounds.
        """
        self.check(wanted)
        total = grows = growth = 0
        oldest: datetime | None = None
        items: list[Preview] = []
        async with self._database.transaction() as session:
            async for volume in await session.stream_scalars(selected_volumes(wanted.selection)):
                decision = wanted.policy.decide(volume.size, volume.used, volume.autogrow)
                code, to_size = (decision, None) if isinstance(decision, Code) else (None, decision)
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
