"""The only module that opens, commits and rolls back transactions, each for one asyncio task or one statement.

Transactions are short: no storage work, HTTP or Redis call happens while one is open. The storage package checks
`in_transaction` and raises, so that a test finds a violation.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Final

import asyncpg
from pydantic_core import from_json
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from domain.db import statements
from domain.db.sql import as_json
from domain.errors import ConfigurationError, DatabaseUnavailable
from domain.postgres_url import parse_url

_open: ContextVar[bool] = ContextVar("open_transaction", default=False)

#: SQLSTATE prefixes of transient failures: connection, rollback (deadlock), resources, operator intervention, system
#: error; a lock timeout; and a read-only server, such as a standby that is being promoted.
_TRANSIENT: Final = ("08", "40", "53", "57", "58", "25006", "25P03", "55P03")
_LOCK_NOT_AVAILABLE: Final = "55P03"
_READ_ONLY: Final = "25006"
#: The transient failures caused by the statement itself: its rows were locked, it was in a deadlock, or it timed out.
_CONTENDED: Final = ("40", "57014", _LOCK_NOT_AVAILABLE)

#: Timeouts in milliseconds. They release the locks of a process that was stopped, so that it does not block the others.
_SERVER_SETTINGS: Final = {
    "application_name": "cistern",
    "idle_in_transaction_session_timeout": "5000",
    "statement_timeout": "10000",
    "lock_timeout": "5000",
    # At a higher level, which a database may have as its default, concurrent claims would fail to serialize.
    "default_transaction_isolation": "read committed",
}

#: A connection idle for longer than this is checked before use, in seconds: it may have died unnoticed.
_IDLE_SECONDS: Final = 1.0
#: Timeout of that check, in seconds. When it expires, the pool discards every connection made before that moment. It is
#: shorter than the timeout of a heartbeat.
_PING_TIMEOUT: Final = 1.5

#: Maximum number of seconds that a process waits at shutdown for a PostgreSQL that accepts data but does not answer.
CLOSE_TIMEOUT: Final = 3.0


def in_transaction() -> bool:
    """Return whether the current task has an open transaction."""
    return _open.get()


class Database:
    """A connection pool of one PostgreSQL server."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self._engine = create_engine(
            url,
            server_settings=_SERVER_SETTINGS,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=5,
            json_serializer=as_json,
            json_deserializer=from_json,
            hide_parameters=True,  # an error of a chunk would quote a thousand rows, and names do not belong in logs
        )
        _check_idle_connections(self._engine)
        _discard_read_only_sessions(self._engine)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._single = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection in autocommit mode, for one statement: one round trip instead of three.

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
            DatabaseUnavailable: no connection was available, it was lost, or the statement failed transiently. If a
                COMMIT was in flight, its result is unknown; a caller that needs it must query again.
        """
        with _transaction_errors():
            async with self._sessions() as session, session.begin():
                yield session

    async def ping(self) -> None:
        """Check that PostgreSQL answers a query.

        Raises:
            DatabaseUnavailable: it does not.
        """
        async with self.transaction() as session:
            await session.execute(statements.PING)

    async def require_migrated(self) -> None:
        """Check that the schema is at the revision of this code, or a newer one.

        Raises:
            ConfigurationError: the schema is older or missing, or PostgreSQL refuses the connection.
        """
        *older, head = known_revisions()
        current = await self._revision()
        if current is None or current in older:
            raise ConfigurationError(
                f"the database is at revision {current or 'none'}, this version needs {head}: run `cistern migrate`"
            )

    async def _revision(self) -> str | None:
        try:
            async with self.transaction() as session:
                if not await session.scalar(statements.IS_MIGRATED):
                    return None
                revision: str | None = await session.scalar(statements.REVISION)
                return revision
        except DBAPIError as error:  # not transient: no such database, no such role, a wrong password
            raise ConfigurationError(f"PostgreSQL refused the connection: {error.orig}") from error

    async def close(self) -> None:
        """Close every connection, after `CLOSE_TIMEOUT` without waiting for PostgreSQL's reply."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._engine.dispose()


@contextmanager
def _transaction_errors() -> Iterator[None]:
    """Mark a transaction as open, and convert transient failures to `DatabaseUnavailable`."""
    token = _open.set(True)
    try:
        yield
    except (OSError, PoolTimeout, DBAPIError) as error:
        if is_transient(error):
            raise DatabaseUnavailable from error
        raise
    finally:
        _open.reset(token)


def create_engine(url: str, *, server_settings: Mapping[str, str] | None = None, **options: Any) -> AsyncEngine:
    """Create an engine for a PostgreSQL URL; connections are opened on first use.

    The URL's own parameters of a session come before ``server_settings``; ``options`` are those of SQLAlchemy.
    """
    arguments = parse_url(url)
    arguments["server_settings"] = {**(server_settings or {}), **arguments["server_settings"]}
    connect = partial(asyncpg.connect, command_timeout=60, **arguments)
    return create_async_engine("postgresql+asyncpg://", async_creator=connect, **options)


def _discard_read_only_sessions(engine: AsyncEngine) -> None:
    """Discard connections whose sessions are read-only, although each of them still answers.

    Either the primary has become a standby, and the same address leads to another server now; or the database was
    read-only when the sessions began.
    """

    @event.listens_for(engine.sync_engine, "handle_error")
    def discard(context: Any) -> None:
        if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
            context.is_disconnect = True


def _check_idle_connections(engine: AsyncEngine) -> None:
    """Ping a connection before use if it has been idle for `_IDLE_SECONDS`: PostgreSQL may have restarted since.

    `pool_pre_ping` pings on every checkout, which costs a round trip in each transaction.
    """

    @event.listens_for(engine.sync_engine, "checkin")
    def record_checkin(_: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def ping_if_idle(connection: Any, record: Any, _: Any) -> None:
        if time.monotonic() - record.info.get("idle_since", math.inf) > _IDLE_SECONDS:
            try:
                # SQLAlchemy's own ping has the timeout of any other statement.
                connection.run_async(lambda raw: raw.fetchrow(";", timeout=_PING_TIMEOUT))
            except Exception as error:
                connection.driver_connection.terminate()  # a clean close could take longer than a heartbeat's timeout
                raise InvalidatePoolError from error  # the pool then opens a new connection


def is_transient(error: Exception) -> bool:
    """Return whether a failure of PostgreSQL is temporary, so that retrying may succeed."""
    if not isinstance(error, DBAPIError):
        return True
    return error.connection_invalidated or _sqlstate(error).startswith(_TRANSIENT)


def failed_transiently(error: Exception) -> bool:
    """Return whether a statement failed transiently, whatever the cause."""
    return isinstance(error, DatabaseUnavailable)


def is_unreachable(error: Exception) -> bool:
    """Return whether PostgreSQL itself was unavailable, so that any other statement would have failed too."""
    return isinstance(error, DatabaseUnavailable) and not _sqlstate(error.__cause__).startswith(_CONTENDED)


def was_lock_timeout(error: DatabaseUnavailable) -> bool:
    """Return whether PostgreSQL was available and only a lock held by another transaction was not."""
    return _sqlstate(error.__cause__) == _LOCK_NOT_AVAILABLE


def _sqlstate(error: BaseException | None) -> str:
    return (getattr(error.orig, "sqlstate", None) or "") if isinstance(error, DBAPIError) else ""


def known_revisions() -> list[str]:
    """Return the schema revisions that this version knows, oldest first.

    They are read from the file names: loading Alembic would take a third of a process's start-up time.
    """
    scripts = Path(__file__).parent / "migrations" / "versions"
    return sorted(script.name.partition("_")[0] for script in scripts.glob("[0-9]*.py"))
