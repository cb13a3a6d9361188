"""The clock of schedules: that of PostgreSQL, so that all replicas agree; tests pass another one."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

Clock = Callable[[AsyncSession], Awaitable[datetime]]


async def postgresql_clock(session: AsyncSession) -> datetime:
    """Return the current time. Not the transaction's start time, because the transaction may have waited for a lock."""
    now: datetime = (await session.scalars(select(func.clock_timestamp()))).one()
    return now
