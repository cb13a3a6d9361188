"""Deals with jobs one by one, each in a transaction of its own: one that nobody can deal with keeps none of the others.

Savepoints would do that too, but hold the locks of all until the last one is done.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from domain.database import Database
from domain.errors import DatabaseUnavailable

_Dealt = TypeVar("_Dealt")

Deal = Callable[[AsyncSession, UUID], Awaitable[_Dealt | None]]
PutOff = Callable[[AsyncSession, UUID], Awaitable[None]]

log = structlog.get_logger(__name__)


async def one_by_one(
    database: Database, job_ids: Iterable[UUID], deal: "Deal[_Dealt]", *, put_off: PutOff
) -> list[_Dealt]:
    """Deal with these jobs; those that raise are logged and put off. Returns what came of the others.

    Raises:
        DatabaseUnavailable: PostgreSQL is away, and not only a row of it locked.
    """
    dealt = []
    for job_id in job_ids:
        try:
            async with database.transaction() as session:
                outcome = await deal(session, job_id)
        except Exception as error:
            if isinstance(error, DatabaseUnavailable):
                await database.ping()  # one that costs its connection each time must not keep the others waiting
            log.exception("job.put_off", job_id=str(job_id))
            async with database.transaction() as session:
                await put_off(session, job_id)
        else:
            dealt += [] if outcome is None else [outcome]
    return dealt
