"""Deals with jobs one by one, each in a transaction of its own: one that nobody can deal with keeps none of the others.

Savepoints would do that too, but hold the locks of all until the last one is done.
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
    """Deal with these jobs; those that raise are logged and put off. Returns what came of the others.

    Raises:
        DatabaseUnavailable: PostgreSQL is away, and not only a row of it locked.
    """
    handled = []
    for job_id in job_ids:
        try:
            async with database.transaction() as session:
                outcome = await handle(session, job_id)
        except Exception as error:
            if isinstance(error, DatabaseUnavailable):
                await database.ping()  # one that costs its connection each time must not keep the others waiting
            log.exception("job.deferred", job_id=str(job_id))
            async with database.transaction() as session:
                await on_error(session, job_id)
        else:
            handled += [] if outcome is None else [outcome]
    return handled
