"""The only module that opens, commits and rolls back transactions, each for one asyncio task or one statement.

Transactions are short: no storage work, HTTP or Redis call happens while one is open. The storage package checks
`in_transaction` and raises, so that a test finds a violation.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog
from pydantic_core import from_json
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from domain.db import statements
from domain.db.connections import (
    LOCK_NOT_AVAILABLE,
    ConnectionRefused,
    NotConnected,
    check_idle_connections,
    create_engine,
    discard_read_only_sessions,
    failed_before_execution,
    is_transient,
    limit_use,
    reason_of,
    require_usable_pooler,
    sqlstate,
    time_limit,
)
from domain.db.sql import as_json, statement_timeout
from domain.errors import ConfigurationError, DatabaseUnavailable

_open: ContextVar[bool] = ContextVar("open_transaction", default=False)

#: The transient failures caused by the statement itself: its rows were locked, it was in a deadlock, or it timed out.
_CONTENDED: Final = ("40", "57014", LOCK_NOT_AVAILABLE)

#: The role may not do this: it was granted what another part needs, or nothing.
_NO_PRIVILEGE: Final = "42501"

#: Timeouts in milliseconds. They release the locks of a process that was stopped, so that it does not block the others.
SERVER_SETTINGS: Final = {
    "idle_in_transaction_session_timeout": "5000",
    "statement_timeout": "10000",
    "lock_timeout": "5000",
    # At a higher level, which a database may have as its default, concurrent claims would fail to serialize.
    "default_transaction_isolation": "read committed",
}

#: Connections per process that only the heartbeat uses: one, and one more if the first one hangs.
RESERVED_CONNECTIONS: Final = 2
#: Seconds without a failure after which an outage is over.
_CALM_SECONDS: Final = 2.0
#: Maximum number of seconds that a process waits at shutdown for a PostgreSQL that accepts data but does not answer.
CLOSE_TIMEOUT: Final = 3.0


log = structlog.get_logger(__name__)


def in_transaction() -> bool:
    """Return whether the current task has an open transaction."""
    return _open.get()


class Database:
    """Two connection pools of one PostgreSQL server: for everything, and the reserved one of the heartbeat."""

    def __init__(self, url: str, *, pool_size: int = 10, timeout: float = 15.0) -> None:
        """Prepare the pools: at most twice ``pool_size`` + `RESERVED_CONNECTIONS` connections, opened on first use.

        ``timeout`` is the maximum duration of a transaction in seconds, with its commit.
        """
        self._engine = _engine(url, pool_size, timeout)
        self._reserved = _engine(url, RESERVED_CONNECTIONS // 2, timeout)
        self._url = url
        self._timeout = timeout
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._single = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._outage = _Outage()

    @asynccontextmanager
    async def autocommit(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection on which each statement is a transaction of its own: one round trip instead of three.

        Raises:
            DatabaseUnavailable: as `transaction`.
        """
        with self._transaction():
            async with self._single.connect() as connection:
                yield connection

    @asynccontextmanager
    async def transaction(
        self, *, statement_seconds: float | None = None, reserved: bool = False
    ) -> AsyncIterator[AsyncSession]:
        """Open a session; commit on a clean exit, roll back on an exception.

        A transaction with a statement that takes long by its nature allows it ``statement_seconds``. ``reserved`` is
        for the heartbeat: its connection is kept open, and no other transaction can take it. If it was lost, and
        PostgreSQL has none left, any other is used.

        Raises:
            DatabaseUnavailable: no connection was available, it was lost, or the statement failed transiently. If a
                COMMIT was in flight, its result is unknown; a caller that needs it must query again.
        """
        with self._transaction():
            if statement_seconds is None:
                async with (
                    self._bind(reserved=reserved) as bind,
                    self._sessions(bind=bind) as session,
                    session.begin(),
                ):
                    yield session
                return
            limit = time_limit.set(statement_seconds + self._timeout)
            try:
                async with self._sessions() as session, session.begin():
                    await session.execute(statement_timeout(statement_seconds))
                    yield session
            finally:
                time_limit.reset(limit)

    @asynccontextmanager
    async def _bind(self, *, reserved: bool) -> AsyncIterator[AsyncEngine | AsyncConnection]:
        """Yield what a session is bound to: a pool, or for the heartbeat a connection."""
        if not reserved:
            yield self._engine
            return
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self._reserved.connect())
            except NotConnected:
                connection = await stack.enter_async_context(self._engine.connect())
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Mark a transaction as open, and convert transient failures to `DatabaseUnavailable`.

        Raises:
            ConfigurationError: the role may not do what was asked for.
        """
        token = _open.set(True)
        try:
            yield
        except (OSError, PoolTimeout, DBAPIError) as error:
            if sqlstate(error) == _NO_PRIVILEGE:
                raise ConfigurationError(
                    f"PostgreSQL: {reason_of(error)}; the role in CISTERN_DATABASE_URL is that of another part of"
                    " Cistern, or `cistern migrate` did not name it"
                ) from error
            if not is_transient(error):
                raise
            unavailable = DatabaseUnavailable(reason_of(error))
            if not sqlstate(error).startswith(_CONTENDED):
                self._outage.note_failure(unavailable.reason)
            raise unavailable from error
        else:
            self._outage.note_success()
        finally:
            _open.reset(token)

    async def ping(self) -> None:
        """Check that PostgreSQL answers a query and takes writes.

        Raises:
            DatabaseUnavailable: it does not, or commits wait for a synchronous standby.
        """
        async with self.transaction() as session:
            state = (await session.execute(statements.PING)).one()
            if state.is_read_only:
                await (await session.connection()).invalidate()
                raise DatabaseUnavailable(message="PostgreSQL takes no writes: the session is read-only.")
            if state.waits_for_standby:
                raise DatabaseUnavailable(message="PostgreSQL takes no writes: commits wait for a synchronous standby.")

    async def require_migrated(self) -> None:
        """Check that the schema is at the revision of this code, or a newer one.

        Raises:
            ConfigurationError: the schema is older or missing, PostgreSQL refuses the connection, or a pooler in front
                of it loses what a session needs.
        """
        *older, head = known_revisions()
        try:
            with self._transaction():
                await require_usable_pooler(self._url, SERVER_SETTINGS)
            current = await self._revision()
        except DatabaseUnavailable as error:
            if isinstance(error.__cause__, ConnectionRefused):
                raise ConfigurationError(f"PostgreSQL refused the connection: {error.reason}") from error
            raise
        if current is None or current in older:
            raise ConfigurationError(
                f"the database is at revision {current or 'none'}, this version needs {head}: run `cistern migrate`"
            )

    async def installation(self) -> UUID:
        """Return the id of this installation, which the migration has made."""
        async with self.transaction() as session:
            installation: UUID = (await session.scalars(statements.INSTALLATION)).one()
            return installation

    async def _revision(self) -> str | None:
        async with self.transaction() as session:
            if not await session.scalar(statements.IS_MIGRATED):
                return None
            revision: str | None = await session.scalar(statements.REVISION)
            return revision

    async def close(self) -> None:
        """Close every connection, after `CLOSE_TIMEOUT` without waiting for PostgreSQL's reply."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._engine.dispose()
                await self._reserved.dispose()


def _engine(url: str, pool_size: int, timeout: float) -> AsyncEngine:
    """Return a pool of up to twice ``pool_size`` connections, of which ``pool_size`` are kept open."""
    engine = create_engine(
        url,
        server_settings=SERVER_SETTINGS,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=5,
        json_serializer=as_json,
        json_deserializer=from_json,
        hide_parameters=True,  # an error of a chunk would quote a thousand rows, and names do not belong in logs
    )
    check_idle_connections(engine)
    discard_read_only_sessions(engine)
    limit_use(engine, timeout)
    return engine


class _Outage:
    """Logs an outage of PostgreSQL once when it begins and once when it ends, whatever the number of failures.

    Before the first success there is no outage: a process that cannot start reports why.
    """

    def __init__(self) -> None:
        self._was_available = False
        self._failures = 0
        self._failed_at = 0.0

    def note_failure(self, reason: str) -> None:
        """Record a transaction that failed because PostgreSQL was unavailable."""
        if not self._was_available:
            return
        if not self._failures:
            log.warning("postgresql.unavailable", reason=reason)
        self._failures += 1
        self._failed_at = time.monotonic()

    def note_success(self) -> None:
        """Record a transaction that succeeded."""
        self._was_available = True
        if self._failures and time.monotonic() - self._failed_at > _CALM_SECONDS:
            log.info("postgresql.available_again", failures=self._failures)
            self._failures = 0


def failed_transiently(error: Exception) -> bool:
    """Return whether a statement failed transiently, whatever the cause."""
    return isinstance(error, DatabaseUnavailable)


def is_unreachable(error: Exception) -> bool:
    """Return whether PostgreSQL itself was unavailable, so that any other statement would have failed too."""
    return isinstance(error, DatabaseUnavailable) and not sqlstate(error.__cause__).startswith(_CONTENDED)


def was_not_executed(error: DatabaseUnavailable) -> bool:
    """Return whether the statement cannot have caused the failure, as where no connection was to be had."""
    return failed_before_execution(error.__cause__)


def was_lock_timeout(error: DatabaseUnavailable) -> bool:
    """Return whether PostgreSQL was available and only a lock held by another transaction was not."""
    return sqlstate(error.__cause__) == LOCK_NOT_AVAILABLE


def known_revisions() -> list[str]:
    """Return the schema revisions that this version knows, oldest first.

    They are read from the file names: loading Alembic would take a third of a process's start-up time.
    """
    scripts = Path(__file__).parent / "migrations" / "versions"
    return sorted(script.name.partition("_")[0] for script in scripts.glob("[0-9]*.py"))
