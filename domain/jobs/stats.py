"""Statistics of the installation: queue depth, age of the oldest due job, and counters of rescues, retries and losses.

Each worker buffers its counters and flushes them with its heartbeat. They are approximate: a killed worker loses
the last few seconds, and a COMMIT whose reply is lost is counted twice.
"""

import asyncio
import collections
import enum
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog
from sqlalchemy import BigInteger, ColumnElement, Select, Text, func, select, union_all
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from domain.db.base import Base
from domain.db.database import Database
from domain.db.sql import array_rows, statement_timeout
from domain.errors import DatabaseUnavailable
from domain.jobs.model import Job, has_status
from domain.jobs.states import JobStatus

#: Maximum queue depth reported: counting a longer queue every second would cost too much.
MAX_COUNTED: Final = 10_000
#: Key of the advisory lock that serializes changes of the counters; arbitrary, but unique in this database.
_COUNTERS_LOCK: Final = 0x0C15C047
_CACHE_SECONDS: Final = 1.0
TIMEOUT_SECONDS: Final = 0.5

log = structlog.get_logger(__name__)


class CounterName(enum.StrEnum):
    """The events counted since the installation was created."""

    #: Jobs whose worker died or lost its connection.
    RESCUED = "rescued"
    #: Failed attempts that are retried; a free retry, such as after waiting for a storage lock, does not count.
    RETRIED = "retried"
    #: Messages that Redis lost.
    LOST_MESSAGES = "lost_messages"


class Counter(Base):
    """One counter; its value never decreases."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]


@dataclass(frozen=True)
class Stats:
    """A snapshot of the statistics. ``queue_depth`` is capped at `MAX_COUNTED`; the age is then a lower bound."""

    queue_depth: int
    oldest_due_seconds: float | None
    counters: Mapping[str, int]


class CounterBuffer:
    """The counts of one worker that are not stored yet."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, name: CounterName, count: int = 1) -> None:
        """Add ``count`` events."""
        self._counts[name] += count

    def pending(self) -> dict[str, int]:
        """Return the counts to store."""
        return dict(+self._counts)

    def flushed(self, counts: Mapping[str, int]) -> None:
        """Subtract counts that have been stored."""
        self._counts.subtract(counts)


class StatsRepository:
    """Counters and statistics, within one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def lock(self) -> None:
        """Wait for the counter lock, and hold it until the transaction ends."""
        await self._session.execute(select(func.pg_advisory_xact_lock(_COUNTERS_LOCK)))

    async def add(self, counts: Mapping[str, int]) -> bool:
        """Add to the counters and return True, or False if another worker holds the counter lock.

        It does not wait for the lock, because a heartbeat must not wait.
        """
        if not counts:
            return False
        rows = array_rows(
            ({"name": name, "value": value} for name, value in counts.items()), name=Text(), value=BigInteger()
        )
        locked = select(func.pg_try_advisory_xact_lock(_COUNTERS_LOCK)).scalar_subquery()  # evaluated once, not per row
        new = insert(Counter).from_select(["name", "value"], select(rows.c.name, rows.c.value).where(locked))
        upsert = new.on_conflict_do_update(index_elements=["name"], set_={"value": Counter.value + new.excluded.value})
        return (await self._session.execute(upsert.returning(Counter.name))).first() is not None

    async def read(self, *, timeout: float = TIMEOUT_SECONDS) -> Stats:  # noqa: ASYNC109 (PostgreSQL's)
        """Read all statistics; each statement may take ``timeout`` seconds."""
        await self._session.execute(statement_timeout(timeout))
        depth, age = (await self._session.execute(waiting_query())).one()
        counters = {row[0]: row[1] for row in await self._session.execute(select(Counter.name, Counter.value))}
        return Stats(
            min(depth, MAX_COUNTED),
            None if age is None else max(0.0, float(age)),
            {name: counters.get(name, 0) for name in CounterName},
        )


class StatsCache:
    """The statistics of one process, read at most once per second however often they are requested."""

    def __init__(self, database: Database, *, timeout: float = TIMEOUT_SECONDS) -> None:
        """Create the cache; reading may take ``timeout`` seconds, which a probe that asks waits for."""
        self._database = database
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._cached: Stats | None = None
        self._cached_at = -_CACHE_SECONDS

    async def latest(self) -> Stats | None:
        """Return the current statistics, or None if they cannot be read quickly. Never raises."""
        async with self._lock:
            if time.monotonic() - self._cached_at >= _CACHE_SECONDS:
                self._cached = await self._read()
                self._cached_at = time.monotonic()
            return self._cached

    async def _read(self) -> Stats | None:
        try:
            async with asyncio.timeout(self._timeout), self._database.transaction() as session:
                return await StatsRepository(session).read(timeout=self._timeout)
        except (DatabaseUnavailable, TimeoutError):
            log.debug("stats.unavailable")
        except Exception:
            log.exception("stats.failed")  # a readiness probe must not fail for it
        return None


def waiting_query(*conditions: ColumnElement[bool]) -> Select[int, float | None]:
    """Return the query of the number of due jobs, and for how many seconds the oldest has been due.

    The number is counted up to `MAX_COUNTED`. Each half uses its own partial index.
    """
    undispatched = _due(Job.dispatched_at.is_(None), Job.run_at, conditions)
    dispatched = _due(Job.dispatched_at.is_not(None), Job.dispatched_at, conditions)
    due = union_all(undispatched, dispatched).subquery()
    return select(func.count(), func.extract("epoch", func.now() - func.min(due.c.run_at))).select_from(due)


def _due(half: ColumnElement[bool], order: Any, conditions: Sequence[ColumnElement[bool]]) -> Select[datetime]:
    query = select(Job.run_at).where(has_status(JobStatus.QUEUED), Job.run_at <= func.now(), half, *conditions)
    return select(query.order_by(order).limit(MAX_COUNTED).subquery().c.run_at)
