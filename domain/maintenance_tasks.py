"""Maintenance tasks, which any worker may run, and the one query that finds out which of them are due."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog
from sqlalchemy import ColumnElement, select

from domain.db.database import Database
from domain.errors import DatabaseUnavailable

log = structlog.get_logger(__name__)


class MaintenanceTask(NamedTuple):
    """One task, run whenever its condition holds."""

    #: The log event of a run that had something to do.
    event: str
    #: Does the work; returns the number of rows processed.
    run: Callable[[], Awaitable[int]]
    #: Whether there may be work. Evaluated without locks, so ``run`` checks again.
    needed: ColumnElement[bool]
    #: Whether only a worker whose heartbeat is current may run it.
    requires_heartbeat: bool = False


class MaintenanceTasks:
    """The maintenance tasks, in the order in which they run."""

    def __init__(self, database: Database, tasks: Sequence[MaintenanceTask]) -> None:
        self._database = database
        self._tasks = tasks
        self._query = select(*(task.needed for task in tasks))

    async def due(self) -> Sequence[tuple[MaintenanceTask, bool]]:
        """Return each task and whether it may have work. Usually none has, so one statement checks all of them.

        If the check itself fails, every task counts as due: one failing condition must not disable the others.
        """
        try:
            async with self._database.autocommit() as connection:
                needed = (await connection.execute(self._query)).one()
            return list(zip(self._tasks, needed, strict=True))
        except DatabaseUnavailable:
            pass  # the tasks themselves will raise that, and it is logged there
        except Exception:
            log.exception("maintenance.check_failed")
        return [(task, True) for task in self._tasks]
