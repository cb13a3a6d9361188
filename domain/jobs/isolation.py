"""Processes jobs one by one, each in its own transaction: a job that cannot be processed must not block the others.

Savepoints would isolate failures too, but hold the locks of all jobs until the last one is processed.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from domain.db.database import Database
from domain.errors import DatabaseUnavailable

_Handled = TypeVar("_Handled")

Handle = Callable[[AsyncSession, UUID], Awaitable[_Handled | None]]
OnError = Callable[[AsyncSession, UUID], Awaitable[None]]

log = structlog.get_logger(__name__)


async def each_in_own_transaction(
    database: Database, job_ids: Iterable[UUID], handle: "Handle[_Handled]", *, on_error: OnError
) -> list[_Handled]:
    """Call ``handle`` for each job and return the results that are not None.

    A job whose handler raises is logged and passed to ``on_error``, in a new transaction.

    Raises:
        DatabaseUnavailable: PostgreSQL itself is unavailable, not only a locked row.
    """
    handled = []
    for job_id in job_ids:
        try:
            async with database.transaction() as session:
                result = await handle(session, job_id)
        except Exception as error:
            if isinstance(error, DatabaseUnavailable):
                await (
                    database.ping()
                )  # go on if it succeeds: a job that breaks its connection must not block the others
            log.exception("job.deferred", job_id=str(job_id))
            async with database.transaction() as session:
                await on_error(session, job_id)
        else:
            handled += [] if result is None else [result]
    return handled
