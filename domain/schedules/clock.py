"""By whose clock schedules are due: PostgreSQL's, so that all replicas agree; in tests another one."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

Clock = Callable[[AsyncSession], Awaitable[datetime]]


async def postgresql_clock(session: AsyncSession) -> datetime:
    """Tell the time. The moment itself and not the transaction's: it may have waited for a lock."""
    now: datetime = (await session.scalars(select(func.clock_timestamp()))).one()
    return now
