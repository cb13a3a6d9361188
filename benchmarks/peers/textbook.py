"""What textbooks write: a table as a class, a session for each job and for each request, a commit, then the enqueue."""

import os
import time
from typing import Any

from sqlalchemy import BigInteger, DateTime, func
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: All of them stay open: the default would open and close some in between.
CONNECTIONS = 32


class Base(DeclarativeBase):
    """All tables."""


class Work(Base):
    """A row to be worked on."""

    __tablename__ = "work"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    size: Mapped[int | None] = mapped_column(BigInteger)
    begun_ns: Mapped[int | None] = mapped_column(BigInteger)
    done_at: Mapped[Any] = mapped_column(DateTime(timezone=True))


def open_sessions() -> async_sessionmaker[AsyncSession]:
    """Connect."""
    url = os.environ["PEERS_DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://")
    return async_sessionmaker(create_async_engine(url, pool_size=CONNECTIONS, max_overflow=0), expire_on_commit=False)


class Sessions:
    """The work of a job, in a session of its own."""

    def __init__(self) -> None:
        self._session: Any = None

    async def open(self, *_: object) -> None:
        """Connect; takes what arq's start-up hook is given."""
        self._session = open_sessions()

    async def do(self, row: int) -> None:
        """Get the row, change it, commit."""
        begun = time.time_ns()
        async with self._session() as session:
            work = await session.get_one(Work, row)
            work.begun_ns = begun
            work.done_at = func.clock_timestamp()
            await session.commit()
