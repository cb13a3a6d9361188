"""Reads the table of workers. Takes a session, never commits."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from domain.jobs.model import Worker, is_alive

#: The agents of nodes are in the same table, since they have leases too.
_DOES_STORAGE_WORK: Final = Worker.node.is_(None)


class WorkerRepository:
    """The workers of the installation, without the agents of nodes, within one transaction."""

    def __init__(self, session: AsyncSession, *, lease: float) -> None:
        """Create the repository; a worker is alive for ``lease`` seconds after a heartbeat."""
        self._session = session
        self._is_alive = is_alive(lease)

    async def all(self) -> Sequence[tuple[Worker, bool]]:
        """Return the workers, each with whether it is alive, the one that started first first."""
        query = select(Worker, self._is_alive).where(_DOES_STORAGE_WORK).order_by(Worker.started_at, Worker.id)
        return [(worker, is_alive) for worker, is_alive in await self._session.execute(query)]

    async def alive(self) -> Sequence[Worker]:
        """Return the workers that are alive, the one that started first first."""
        return [worker for worker, is_alive in await self.all() if is_alive]

    async def count_alive(self) -> int:
        """Count the workers that are alive."""
        return (await self._session.scalars(select(func.count()).where(self._is_alive, _DOES_STORAGE_WORK))).one()
