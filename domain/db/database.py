"""The only place that opens, commits and rolls back: transactions of one asyncio task each, or of one statement.

A transaction is short. No storage work, no HTTP and no Redis happens while one is open; `in_transaction`
lets the storage room refuse, so that a test finds the place.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from pydantic_core import from_json
from sqlalchemy import (
    event,
    text,
)
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from domain.db.sql import as_json
from domain.errors import ConfigurationError, DatabaseUnavailable

_open: ContextVar[bool] = ContextVar("open_transaction", default=False)

# SQLSTATE classes that pass by themselves: connection, rollback (deadlock), resources, operator, system; lock timeouts,
# and a server that may not be written to, such as a standby that is just being promoted.
_TRANSIENT: Final = ("08", "40", "53", "57", "58", "25006", "25P03", "55P03")
_LOCKED: Final = "55P03"
#: Of these, what has to do with what was asked: it was locked, in a deadlock, or took too long.
_CONTENDED: Final = ("40", "57014", _LOCKED)

# A stopped process must not hold the others: its locks are taken from it (milliseconds).
_SERVER_SETTINGS: Final = {
    "application_name": "cistern",
    "idle_in_transaction_session_timeout": "5000",
    "statement_timeout": "10000",
    "lock_timeout": "5000",
}

#: A connection that has rested for so long may have died unnoticed.
_IDLE_SECONDS: Final = 1.0
#: So long it has to answer, before all others that are as old are held to be dead too: less than a heartbeat waits.
_PING_TIMEOUT: Final = 1.5

#: How long a process that ends waits for a PostgreSQL that is there, but does not answer.
CLOSE_TIMEOUT: Final = 3.0


def in_transaction() -> bool:
    """Tell whether the current task has a transaction open."""
    return _open.get()


class Database:
    """A pool of connections to one PostgreSQL."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self._engine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=5,
            json_serializer=as_json,
            json_deserializer=from_json,
            hide_parameters=True,  # an error over a chunk would quote a thousand rows, and names are not for logs
            connect_args={"server_settings": dict(_SERVER_SETTINGS), "timeout": 5, "command_timeout": 60},
        )
        _check_idle_connections(self._engine)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._single = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection for one statement, which is a transaction by itself: one round trip instead of three.

        Raises:
            DatabaseUnavailable: as `transaction`.
        """
        with _transaction_errors():
            async with self._single.connect() as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """Open a session; commit on a clean exit, roll back on an exception.

        Raises:
            DatabaseUnavailable: the connection is missing or was lost. Whether a COMMIT that was on its way
                took effect is then unknown; whoever must know asks again.
        """
        with _transaction_errors():
            async with self._sessions() as session, session.begin():
                yield session

    async def ping(self) -> None:
        """Ask PostgreSQL for a sign of life.

        Raises:
            DatabaseUnavailable: there is none.
        """
        async with self.transaction() as session:
            await session.execute(text("SELECT 1"))

    async def require_migrated(self) -> None:
        """Make sure that the schema is the one this code was written for, or a newer one.

        Raises:
            ConfigurationError: the schema is older, or not there at all, or PostgreSQL does not let us look.
        """
        *older, head = _known_revisions()
        current = await self._revision()
        if current is None or current in older:
            raise ConfigurationError(
                f"the database is at revision {current or 'none'}, this version needs {head}: run `cistern migrate`"
            )

    async def _revision(self) -> str | None:
        try:
            async with self.transaction() as session:
                if await session.scalar(text("SELECT to_regclass('alembic_version')")) is None:
                    return None
                revision: str | None = await session.scalar(text("SELECT version_num FROM alembic_version"))
                return revision
        except DBAPIError as error:  # what does not pass: no such database, no such role, a wrong password
            raise ConfigurationError(f"PostgreSQL does not let us in: {error.orig}") from error

    async def close(self) -> None:
        """Close every connection; without its goodbye, where PostgreSQL does not answer one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._engine.dispose()


@contextmanager
def _transaction_errors() -> Iterator[None]:
    """Remember that a transaction is open, and name the failures that pass."""
    token = _open.set(True)
    try:
        yield
    except (OSError, PoolTimeout, DBAPIError) as error:
        if is_transient(error):
            raise DatabaseUnavailable from error
        raise
    finally:
        _open.reset(token)


def _check_idle_connections(engine: AsyncEngine) -> None:
    """Have a connection that nobody has used for a while looked at before it is used: PostgreSQL may have restarted.

    `pool_pre_ping` looks every time, which is a round trip in each transaction.
    """

    @event.listens_for(engine.sync_engine, "checkin")
    def note(_: Any, record: Any) -> None:
        record.info["rests_since"] = time.monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def look(connection: Any, record: Any, _: Any) -> None:
        if time.monotonic() - record.info.get("rests_since", math.inf) > _IDLE_SECONDS:
            try:
                # SQLAlchemy's own ping waits as long as for any answer.
                connection.run_async(lambda raw: raw.fetchrow(";", timeout=_PING_TIMEOUT))
            except Exception as error:
                connection.driver_connection.terminate()  # a goodbye would take longer than a heartbeat can wait
                raise InvalidatePoolError from error  # the pool connects anew


def is_transient(error: Exception) -> bool:
    """Tell whether PostgreSQL is only away for the moment."""
    if not isinstance(error, DBAPIError):
        return True
    return error.connection_invalidated or _sqlstate(error).startswith(_TRANSIENT)


def is_unavailable(error: Exception) -> bool:
    """Tell whether it is a failure of PostgreSQL that passes by itself, whatever the cause."""
    return isinstance(error, DatabaseUnavailable)


def is_unreachable(error: Exception) -> bool:
    """Tell whether PostgreSQL itself was not to be had, whatever it was asked."""
    return isinstance(error, DatabaseUnavailable) and not _sqlstate(error.__cause__).startswith(_CONTENDED)


def was_lock_timeout(error: DatabaseUnavailable) -> bool:
    """Tell whether PostgreSQL was there all the time, and only what somebody else had locked was not to be had."""
    return _sqlstate(error.__cause__) == _LOCKED


def _sqlstate(error: BaseException | None) -> str:
    return (getattr(error.orig, "sqlstate", None) or "") if isinstance(error, DBAPIError) else ""


def _known_revisions() -> list[str]:
    """The revisions of this version's schema, oldest first; a newer one is not among them.

    Read off the names of the files: Alembic would take a third of the time that a process needs to start.
    """
    scripts = Path(__file__).parent / "migrations" / "versions"
    return sorted(script.name.partition("_")[0] for script in scripts.glob("[0-9]*.py"))
