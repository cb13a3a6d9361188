"""Connections to PostgreSQL: how they are opened, and which of them are discarded.

PostgreSQL may fail over behind one address, or to another host of the URL. A connection must therefore never outlive
its use: one that hangs, that leads to a server without writes, or that died while it was idle is thrown away.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final
from uuid import uuid4

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from domain.errors import ConfigurationError
from domain.postgres_url import parse_url

#: Maximum number of seconds that a statement waits for a reply, whatever else limits it.
_COMMAND_TIMEOUT: Final = 60
#: A connection idle for longer than this is checked before use, in seconds: it may have died unnoticed.
_IDLE_SECONDS: Final = 1.0
#: Timeout of that check, in seconds. When it expires, the pool discards every connection made before that moment. It is
#: shorter than the timeout of a heartbeat.
_PING_TIMEOUT: Final = 1.5

#: SQLSTATE prefixes of transient failures: connection, rollback (deadlock), resources, operator intervention, system
#: error; a lock timeout; and a read-only server, such as a standby that is being promoted.
_TRANSIENT: Final = ("08", "40", "53", "57", "58", "25006", "25P03", "55P03")
#: SQLSTATE prefixes of a refused connection that a retry with the same settings does not change.
_PERMANENT: Final = ("08P01", "28", "3D", "42")
#: How often it is tried whether a pooler moves a connection to another server.
_POOLER_TRIES: Final = 3
LOCK_NOT_AVAILABLE: Final = "55P03"
_READ_ONLY: Final = "25006"

#: The time limit in seconds of the transaction that the current task opens; None for that of the engine.
time_limit: Final[ContextVar[float | None]] = ContextVar("time_limit", default=None)


_Host = tuple[str | None, int]


class NotConnected(OSError):
    """No connection was to be had: no host answered, none of those that did is wanted, or all connections are in use.

    A connection that is lost later raises another error.
    """


class ConnectionRefused(NotConnected):
    """PostgreSQL answered and refuses these settings: role, password, database, or a parameter of the session."""


def create_engine(url: str, *, server_settings: Mapping[str, str] | None = None, **options: Any) -> AsyncEngine:
    """Create an engine for a PostgreSQL URL; connections are opened on first use.

    ``server_settings`` are set when a connection has been opened; ``options`` are those of SQLAlchemy.
    """
    connect = _connector(url, server_settings or {})
    return create_async_engine("postgresql+asyncpg://", async_creator=connect, **options)


def _connector(url: str, settings: Mapping[str, str]) -> Callable[[], Awaitable["asyncpg.Connection[Any]"]]:
    """Return a function that connects to this URL and sets these parameters of the session."""
    arguments = parse_url(url)
    arguments["hosts"] = list(arguments["hosts"])  # `_connect` changes its order
    arguments["server_settings"] = {"application_name": "cistern"} | arguments["server_settings"]
    return partial(_connect, settings, **arguments)


async def _connect(
    settings: Mapping[str, str],
    *,
    hosts: list[_Host],
    timeout: float,  # noqa: ASYNC109 (asyncpg's own)
    target_session_attrs: str,
    **arguments: Any,
) -> "asyncpg.Connection[Any]":
    """Connect to the first host of the URL that answers and is wanted; each has ``timeout`` seconds.

    asyncpg has one timeout for all hosts together, and a host that is frozen would use it up. A host that fails is
    moved to the end of ``hosts``, also if the caller does not wait for its timeout: a heartbeat never does.

    Raises:
        NotConnected: no host answered, or none of those that did is wanted or has a connection left.
        ConnectionRefused: the last host refuses these settings.
        ConfigurationError: asyncpg cannot use them.
    """
    wanted = ("standby", "any") if target_session_attrs == "prefer-standby" else (target_session_attrs,)
    errors: list[Exception] = []
    for attribute, (host, port) in itertools.product(wanted, tuple(hosts)):
        try:
            with _last_if_it_fails((host, port), hosts):
                connection = await asyncpg.connect(
                    host=host,
                    port=port,
                    target_session_attrs=attribute,
                    timeout=timeout,
                    command_timeout=_COMMAND_TIMEOUT,
                    **arguments,
                )
                return await _with_settings(connection, settings, timeout)
        except TimeoutError:
            errors.append(NotConnected(f"{host}:{port} did not answer within {timeout:g} s"))
        except asyncpg.TargetServerAttributeNotMatched:
            errors.append(NotConnected(f"{host}:{port} is not {attribute}"))
        except OSError as error:
            errors.append(NotConnected(f"{host}:{port}: {error.strerror or error}"))
        except asyncpg.ClientConfigurationError as error:  # nothing has been opened
            raise ConfigurationError(f"CISTERN_DATABASE_URL: {error}") from error
        except asyncpg.PostgresError as error:
            refused = ConnectionRefused if str(error.sqlstate).startswith(_PERMANENT) else NotConnected
            errors.append(refused(f"{host}:{port}: {error}"))
    raise errors[-1]


@contextmanager
def _last_if_it_fails(host: _Host, hosts: list[_Host]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        hosts.remove(host)
        hosts.append(host)
        raise


async def _with_settings(
    connection: "asyncpg.Connection[Any]", settings: Mapping[str, str], seconds: float
) -> "asyncpg.Connection[Any]":
    """Set parameters of the session by statements: poolers refuse most of them when a connection is opened."""
    try:
        if settings:
            assignments = "; ".join(f"SET {name} = '{value}'" for name, value in settings.items())
            await connection.execute(assignments, timeout=seconds)
    except asyncpg.InterfaceError as error:  # the connection was lost meanwhile
        connection.terminate()
        raise OSError(str(error)) from error
    except BaseException:
        connection.terminate()
        raise
    return connection


async def require_usable_pooler(url: str, settings: Mapping[str, str]) -> None:
    """Check that a pooler in front of PostgreSQL, if there is one, keeps what a session needs.

    A pooler tells another process id than that of the server. In transaction mode each transaction has a server of its
    own: prepared statements must follow it there (PgBouncer 1.21), and ``settings`` must be those of the role.

    Raises:
        OSError: as `create_engine`'s connections.
        ConfigurationError: the pooler loses prepared statements or settings; the message names the remedy.
    """
    connect = _connector(url, {})
    one = await connect()
    try:
        query = "SELECT pg_backend_pid()"
        if await one.fetchval(query) == one.get_server_pid():
            return
        two = await connect()
        try:
            statement = await one.prepare(query, name=f"cistern_{uuid4().hex}")
            servers = set()
            for _ in range(_POOLER_TRIES):
                servers.add(await statement.fetchval())
                await two.execute("BEGIN")  # holds the server that was released last
                servers.add(await statement.fetchval())
                await two.execute("ROLLBACK")
            if len(servers) > 1:
                await _require_settings_of_role(one, settings)
        finally:
            two.terminate()
    except (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError) as error:
        raise ConfigurationError(
            "the pooler in front of PostgreSQL loses prepared statements: use its session mode, or PgBouncer"
            " 1.21 or newer with max_prepared_statements"
        ) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise OSError(str(error)) from error
    finally:
        one.terminate()


async def _require_settings_of_role(connection: "asyncpg.Connection[Any]", settings: Mapping[str, str]) -> None:
    rows = await connection.fetch("SELECT name, reset_val FROM pg_settings WHERE name = ANY($1)", list(settings))
    missing = [row["name"] for row in rows if row["reset_val"] != settings[row["name"]]]
    if missing:
        changes = "; ".join(f"ALTER ROLE CURRENT_USER SET {name} = '{settings[name]}'" for name in sorted(missing))
        raise ConfigurationError(f"in the transaction mode of a pooler, the role of PostgreSQL needs: {changes}")


def limit_use(engine: AsyncEngine, seconds: float) -> None:
    """Terminate a connection that is used for longer than ``seconds``, or than its `time_limit`.

    The server may be frozen, or a commit may wait for a synchronous standby that is away. PostgreSQL's own timeouts end
    neither. The user gets an error at once, as from a lost connection.
    """

    @event.listens_for(engine.sync_engine, "checkout")
    def start(connection: Any, record: Any, _: Any) -> None:
        loop, driver = asyncio.get_running_loop(), connection.driver_connection
        record.info["time_limit"] = loop.call_later(time_limit.get() or seconds, driver.terminate)

    @event.listens_for(engine.sync_engine, "checkin")
    def stop(_: Any, record: Any) -> None:
        if (timer := record.info.pop("time_limit", None)) is not None:
            timer.cancel()


def discard_read_only_sessions(engine: AsyncEngine) -> None:
    """Discard connections whose sessions are read-only, although each of them still answers.

    Either the primary has become a standby, and the same address leads to another server now; or the database was
    read-only when the sessions began.
    """

    @event.listens_for(engine.sync_engine, "handle_error")
    def discard(context: Any) -> None:
        if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
            context.is_disconnect = True


def check_idle_connections(engine: AsyncEngine) -> None:
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
    return error.connection_invalidated or _is_stale_plan(error) or sqlstate(error).startswith(_TRANSIENT)


def failed_before_execution(error: BaseException | None) -> bool:
    """Return whether a statement cannot have caused this failure, because PostgreSQL has not begun to execute it."""
    return isinstance(error, NotConnected | PoolTimeout) or _is_stale_plan(error)


def _is_stale_plan(error: BaseException | None) -> bool:
    """Return whether a column has changed its type since the plan was cached. SQLAlchemy has discarded it by now."""
    return isinstance(error, DBAPIError) and isinstance(_cause(error), asyncpg.InvalidCachedStatementError)


def reason_of(error: Exception) -> str:
    """Return the words of the server or the library for a failure; they may name hosts, but no values of rows."""
    if isinstance(error, PoolTimeout):
        return "all connections of this process are in use"
    return str(_cause(error)) or type(error).__name__


def sqlstate(error: BaseException | None) -> str:
    """Return the SQLSTATE of an error; "" if it has none."""
    return (getattr(error.orig, "sqlstate", None) or "") if isinstance(error, DBAPIError) else ""


def _cause(error: Exception) -> BaseException:
    """Return the error of the driver that SQLAlchemy has wrapped."""
    original = getattr(error, "orig", None) or error
    return original.__cause__ or original
