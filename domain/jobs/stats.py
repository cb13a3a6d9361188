"""What tells from outside how the installation fares: what waits, for how long, and what had to be mended.

Counters are gathered in each worker and written with its heartbeat. They are for looking at: a worker that is killed
takes some seconds of counting with it, and a COMMIT whose answer is lost is counted twice.
"""

import asyncio
import collections
import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog
from sqlalchemy import BigInteger, ColumnElement, Select, Text, func, literal, select, text, union_all
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from domain.db.base import Base
from domain.db.database import Database
from domain.db.sql import given_rows
from domain.errors import DatabaseUnavailable
from domain.jobs.model import Job
from domain.jobs.states import JobStatus

#: Counting stops here: nobody needs the exact length of a long queue every second.
MAX_COUNTED: Final = 10_000
#: Who adds to the counters at the moment. Any number that nobody else uses on this database.
_COUNTERS_LOCK: Final = 0x0C15C047
_CACHE_SECONDS: Final = 1.0
_TIMEOUT_SECONDS: Final = 0.5

log = structlog.get_logger(__name__)


class CounterName(enum.StrEnum):
    """What is counted since the installation began."""

    #: Jobs whose worker died or lost touch.
    RESCUED = "rescued"
    #: Attempts that failed and were followed by another one; waiting for somebody else's lock is no failure.
    RETRIED = "retried"
    #: Messages that Redis had lost.
    LOST_MESSAGES = "lost_messages"


class Counter(Base):
    """One number that only grows."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]


@dataclass(frozen=True)
class Stats:
    """The installation at one moment. ``queue_depth`` ends at `MOST_COUNTED`; then the age is a lower bound."""

    queue_depth: int
    oldest_due_seconds: float | None
    counters: Mapping[str, int]


class CounterBuffer:
    """What one worker has counted and not written down yet."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()

    def add(self, name: CounterName, count: int = 1) -> None:
        """Count."""
        self._counts[name] += count

    def pending(self) -> dict[str, int]:
        """Tell what is to be written down."""
        return dict(+self._counts)

    def flushed(self, counts: Mapping[str, int]) -> None:
        """Note that this much has been written down."""
        self._counts.subtract(counts)


class StatsRepository:
    """Counters, and the queue as a whole, seen from one transaction."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def lock(self) -> None:
        """Be the only one who adds to the counters until the transaction ends."""
        await self._session.execute(select(func.pg_advisory_xact_lock(_COUNTERS_LOCK)))

    async def add(self, counts: Mapping[str, int]) -> bool:
        """Add to the counters, unless somebody else is about it at this moment: nobody's heart waits for that."""
        if not counts:
            return False
        given = given_rows(
            ({"name": name, "value": value} for name, value in counts.items()), name=Text(), value=BigInteger()
        )
        mine = select(func.pg_try_advisory_xact_lock(_COUNTERS_LOCK)).scalar_subquery()  # asked once, not for each row
        adding = insert(Counter).from_select(["name", "value"], select(given.c.name, given.c.value).where(mine))
        added = adding.on_conflict_do_update(
            index_elements=["name"], set_={"value": Counter.value + adding.excluded.value}
        )
        return (await self._session.execute(added.returning(Counter.name))).first() is not None

    async def read(self) -> Stats:
        """Look at everything, within half a second or not at all."""
        limit = f"SET LOCAL statement_timeout = '{_TIMEOUT_SECONDS * 1000:.0f}ms'"
        await self._session.execute(text(limit))
        depth, age = (await self._session.execute(_waiting())).one()
        counters = {row[0]: row[1] for row in await self._session.execute(select(Counter.name, Counter.value))}
        return Stats(
            min(depth, MAX_COUNTED),
            None if age is None else max(0.0, float(age)),
            {name: counters.get(name, 0) for name in CounterName},
        )


class StatsCache:
    """The signals for whoever asks, as often as they ask: one look a second for a whole process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._looking = asyncio.Lock()
        self._seen: Stats | None = None
        self._seen_at = -_CACHE_SECONDS

    async def latest(self) -> Stats | None:
        """Tell the signals of this second; None when they cannot be had quickly. Never fails."""
        async with self._looking:
            if time.monotonic() - self._seen_at >= _CACHE_SECONDS:
                self._seen = await self._read()
                self._seen_at = time.monotonic()
            return self._seen

    async def _read(self) -> Stats | None:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS), self._database.transaction() as session:
                return await StatsRepository(session).read()
        except (DatabaseUnavailable, TimeoutError):
            log.debug("stats.unavailable")
        except Exception:
            log.exception("stats.failed")  # whoever balances load must not hear of it
        return None


def _waiting() -> Select[int, float | None]:
    """How many queued jobs are due, and since when; each part walks along an index of its own."""
    unrung = _due(Job.dispatched_at.is_(None), Job.run_at)
    dispatched = _due(Job.dispatched_at.is_not(None), Job.dispatched_at)
    due = union_all(unrung, dispatched).subquery()
    return select(func.count(), func.extract("epoch", func.now() - func.min(due.c.run_at))).select_from(due)


def _due(condition: ColumnElement[bool], order: Any) -> Select[datetime]:
    query = select(Job.run_at).where(Job.status == literal(JobStatus.QUEUED), Job.run_at <= func.now(), condition)
    return select(query.order_by(order).limit(MAX_COUNTED).subquery().c.run_at)
