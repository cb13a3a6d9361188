"""The textbook: what tutorials show. A mapped class, a session per job and per request, a commit, then the enqueue."""

import os
import time
from typing import Any

from sqlalchemy import BigInteger, DateTime, func
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: All connections stay open; SQLAlchemy's default would open and close some of them all the time.
CONNECTIONS = 32


class Base(DeclarativeBase):
    """The base of all tables."""


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
        """Connect; accepts the arguments of arq's start-up hook."""
        self._session = open_sessions()

    async def do(self, row: int) -> None:
        """Get the row, change it, commit."""
        begun = time.time_ns()
        async with self._session() as session:
            work = await session.get_one(Work, row)
            work.begun_ns = begun
            work.done_at = func.clock_timestamp()
            await session.commit()
