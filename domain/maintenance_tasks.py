"""What is to be done now and then by whichever worker comes first, and how a worker sees whether it is."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog
from sqlalchemy import ColumnElement, select

from domain.db.database import Database
from domain.errors import DatabaseUnavailable

log = structlog.get_logger(__name__)


class MaintenanceTask(NamedTuple):
    """Something that is done whenever there is a need."""

    #: What the log says when there was something to do.
    event: str
    #: Returns how much there was to do.
    run: Callable[[], Awaitable[int]]
    #: Whether there may be something to do: seen without locks, so whoever does it looks again.
    needed: ColumnElement[bool]
    #: Whether it is only for a worker that beats.
    requires_heartbeat: bool = False


class MaintenanceTasks:
    """Errands, in the order in which they are run."""

    def __init__(self, database: Database, tasks: Sequence[MaintenanceTask]) -> None:
        self._database = database
        self._tasks = tasks
        self._question = select(*(task.needed for task in tasks))

    async def due(self) -> Sequence[tuple[MaintenanceTask, bool]]:
        """Tell which of them may be needed. Mostly none is, so it takes one statement for all.

        Whoever cannot see must take it that all are: one sign that fails keeps no errand from being run.
        """
        try:
            needed = await self._needed()
        except Exception as error:
            if not isinstance(error, DatabaseUnavailable):  # else they will find out themselves, and say so
                log.exception("maintenance.check_failed")
            needed = [True] * len(self._tasks)
        return list(zip(self._tasks, needed, strict=True))

    async def _needed(self) -> Sequence[bool]:
        async with self._database.autocommit() as connection:
            return (await connection.execute(self._question)).one()
