"""Opens Redis: one server, or the primary that Redis Sentinel names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from arq.connections import ArqRedis
from redis.asyncio.connection import URL_QUERY_ARGUMENT_PARSERS, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from domain.errors import ConfigurationError
from domain.postgres_url import option_name

#: Timeout of each operation: a request must be answered within a second even if Redis is down.
TIMEOUT_SECONDS: Final = 0.8
_SENTINEL: Final = "+sentinel"
_SENTINEL_PORT: Final = 26379
_FILES: Final = frozenset({"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"})
#: Options of redis-py that a URL can have: those that it converts, and those whose value is a text or a number. It
#: takes any other argument too, but as a text: it fails on first use, or, as `decode_responses`, changes what is read.
_URL_OPTIONS: Final = frozenset(
    {
        *URL_QUERY_ARGUMENT_PARSERS,
        *("username", "password", "sentinel_username", "sentinel_password"),
        *("client_name", "lib_name", "lib_version", "protocol"),
        *(*_FILES, "ssl_ca_data", "ssl_cert_reqs", "ssl_ciphers", "ssl_password"),
    }
)
_OPTIONS: Final[dict[str, Any]] = {
    "socket_connect_timeout": TIMEOUT_SECONDS,
    "socket_timeout": 5,
    # Retry once, at once, in case a pooled connection died unnoticed. OSError: a failed connect.
    "retry": Retry(NoBackoff(), 1),
    "retry_on_error": [RedisConnectionError, RedisTimeoutError, OSError],
}


def open_redis(url: str) -> ArqRedis:
    """Prepare connections to the Redis at ``url``; the first is opened on first use.

    ``redis+sentinel://[USER:PASSWORD@]HOST[:PORT],.../NAME[/DB]`` asks Sentinels for the primary called NAME;
    ``rediss+sentinel://`` uses TLS. The options ``sentinel_username`` and ``sentinel_password`` are for the Sentinels.

    Raises:
        ConfigurationError: the URL is malformed, has an option that redis-py does not know, or names a file that does
            not exist. The message quotes no part of the URL that may be a password.
    """
    try:
        scheme, _, rest = url.partition("://")
        _require_readable(scheme, urlsplit(url))
        if scheme.endswith(_SENTINEL):
            redis = _open_by_sentinel(scheme.removesuffix(_SENTINEL), rest)
        else:
            redis = ArqRedis.from_url(url, **_OPTIONS)
        _require_files(redis.connection_pool.connection_kwargs)
        redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # opens nothing; rejects unknown options
    except Exception as error:  # noqa: BLE001 (redis-py raises errors of many kinds)
        raise ConfigurationError(f"CISTERN_REDIS_URL: {_reason(error)}") from None  # the cause may quote the password
    return redis


class _UrlError(ValueError):
    """What is wrong with the URL, without a part of it that may be a password."""


def _reason(error: Exception) -> str:
    """Return what is wrong. Errors of redis-py and of Python quote values, so only the name of an option is taken."""
    if isinstance(error, _UrlError):
        return str(error)
    if option := re.search(r"(?:argument|value for) '([a-z_]+)'", str(error)):
        return f"the option {option[1]} cannot be used here, or has an invalid value"
    return "its host, its port, or the value of an option is malformed"


def _require_readable(scheme: str, parts: SplitResult) -> None:
    """redis-py ignores a database that is no number."""
    if unknown := {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)} - _URL_OPTIONS:
        raise _UrlError(f"there is no option {option_name(min(unknown))}")
    if scheme != "unix" and "@" in parts.path + parts.fragment:
        raise _UrlError("in a password, write / as %2F, ? as %3F and # as %23")
    path = parts.path.strip("/")
    database = path.partition("/")[2] if scheme.endswith(_SENTINEL) else path
    if scheme != "unix" and database and not database.isdecimal():
        raise _UrlError("after the host comes the number of a database, and nothing else")


def _require_files(options: Mapping[str, Any]) -> None:
    """redis-py reads the files when it connects: a process would start, and never reach Redis."""
    for name in _FILES & options.keys():
        if not Path(options[name]).exists():
            raise _UrlError(f"{name}: there is no file {options[name]}")


def _open_by_sentinel(scheme: str, rest: str) -> ArqRedis:
    parts = urlsplit(f"//{rest}")
    account, _, places = parts.netloc.rpartition("@")
    name, _, database = parts.path.strip("/").partition("/")
    if not name:
        raise _UrlError("the path must be the name of the primary: redis+sentinel://HOST:PORT/NAME")
    hosts = [_address(place) for place in places.split(",")]
    # redis-py converts the options of a URL, so let it read one without the Sentinels.
    options: dict[str, Any] = {**parse_url(f"{scheme}://{account}@/{database}?{parts.query}")}
    tls: dict[str, Any] = {"ssl": True} if options.pop("connection_class", None) else {}
    for_sentinels = {
        key.removeprefix("sentinel_"): options.pop(key) for key in [*options] if key.startswith("sentinel_")
    }
    timeouts = {key: value for key, value in _OPTIONS.items() if key.startswith("socket_")}
    sentinel = Sentinel(hosts, sentinel_kwargs={**timeouts, **tls, **for_sentinels})  # type: ignore[no-untyped-call]
    redis: ArqRedis = sentinel.master_for(
        name, redis_class=ArqRedis, connection_pool_class=_Pool, **_OPTIONS, **tls, **options
    )
    return redis


class _Pool(SentinelConnectionPool):
    """Closes the connections to the Sentinels as well, which redis-py leaves open."""

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 (redis-py's signature)
        await super().disconnect(inuse_connections)
        for sentinel in self.sentinel_manager.sentinels:
            await sentinel.connection_pool.disconnect(inuse_connections)


def _address(place: str) -> tuple[str, int]:
    parts = urlsplit(f"//{place}")
    if not parts.hostname:
        raise _UrlError("a Sentinel has no host")
    return parts.hostname, parts.port or _SENTINEL_PORT
