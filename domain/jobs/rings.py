"""What housekeeping asks of the job table about jobs that wait: whom to ring, and whose message may be lost.

Takes a session, never commits. All times are PostgreSQL's, so that the clocks of the workers do not matter.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from domain.database import from_now
from domain.jobs.model import Job, Ring
from domain.jobs.states import JobStatus


class RingRepository:
    """Queued jobs and when they were rung, seen from one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def due(self, limit: int) -> Sequence[Ring]:
        """Take queued jobs whose time has come and that have not been rung, and note that they are being rung."""
        return await self._note_rung(Job.rung_at.is_(None), Job.run_at, limit)

    async def rung_before(self, age: float, limit: int) -> Sequence[Ring]:
        """Take queued jobs that were rung over ``age`` seconds ago, longest ago first, and note them as seen now."""
        return await self._note_rung(Job.rung_at < from_now(-age), Job.rung_at, limit)

    async def _note_rung(self, condition: ColumnElement[bool], order: Any, limit: int) -> Sequence[Ring]:
        waiting = (
            select(Job.id)
            .where(Job.status == JobStatus.QUEUED, Job.run_at <= func.now(), condition)
            .order_by(order)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        query = (
            update(Job)
            .where(Job.id.in_(waiting))
            .values(rung_at=func.now())
            .returning(Job.id, Job.rings)
            .execution_options(synchronize_session=False)
        )
        return [Ring(*row) for row in await self._session.execute(query)]
