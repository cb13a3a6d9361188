"""PostgreSQL URLs, in the forms that hosted services hand out, as arguments of asyncpg.

``postgresql://``, ``postgres://`` and ``postgresql+asyncpg://``, one host or several, with the options of libpq:
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
"""

import re
import ssl
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode

SCHEMES: Final = ("postgresql", "postgres", "postgresql+asyncpg")
_PORT: Final = 5432
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SESSION_ATTRIBUTES: Final = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
#: An address may lead to a standby for a while, after a failover. What is read there is older than what was answered.
_DEFAULT_ATTRIBUTE: Final = "primary"
_FILES: Final = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
#: Options that asyncpg reads from its own URL.
_OF_ASYNCPG: Final = _FILES | {
    *("ssl", "sslmode", "sslnegotiation", "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version"),
    *("passfile", "krbsrvname", "gsslib"),
}
#: SQLAlchemy's name of an option.
_SQLALCHEMY_NAMES: Final = {"ssl": "sslmode"}
#: Options that are read here.
_OF_CISTERN: Final = frozenset({"connect_timeout", "target_session_attrs"})
_OF_ACCOUNT: Final = frozenset({"user", "password", "dbname"})
#: Options that PostgreSQL itself gets when a session begins.
_OF_SERVER: Final = frozenset({"application_name", "options"})
#: Options of libpq without an equal in asyncpg, which changes nothing but how a connection is kept or negotiated.
_WITHOUT_EQUAL: Final = frozenset(
    {
        *("channel_binding", "gssencmode", "sslcompression", "fallback_application_name", "client_encoding"),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    }
)


def parse_url(url: str) -> dict[str, Any]:
    """Convert a URL to arguments of `asyncpg.connect`, but for ``hosts``, which are pairs of a host and a port.

    Raises:
        ValueError: the URL is malformed, has an option that is unknown, or names a file that does not exist.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise ValueError(f"must begin with {', '.join(f'{name}://' for name in SCHEMES)}")
    account, _, place = rest.rpartition("@")  # a password may contain any character
    place, _, query = place.partition("?")
    netloc, _, database = place.partition("/")
    user, has_password, password = account.partition(":")
    given = parse_qsl(query, keep_blank_values=True)
    addresses = [one for name, value in given if name == "host" for one in value.split(",")] or netloc.split(",")
    ports = [one for name, value in given if name == "port" for one in value.split(",")]
    pairs = [_address(one) for one in addresses if one]
    options = {name: value for name, value in given if name not in ("host", "port")}
    arguments = _options(options)
    if len(ports) == 1:
        ports *= len(pairs)  # as in libpq
    if ports and len(ports) != len(pairs):
        raise ValueError(f"there are {len(pairs)} hosts and {len(ports)} ports")
    arguments["hosts"] = [(host, _port(ports[i]) if ports else port) for i, (host, port) in enumerate(pairs)] or [
        (None, _PORT)
    ]
    names = {"user": options.get("user", user), "database": options.get("dbname", database)}
    arguments |= {name: unquote(value) for name, value in names.items() if value}
    if has_password or "password" in options:
        arguments["password"] = options.get("password", unquote(password))
    return arguments


def option_name(name: str) -> str:
    """Return the name of an unknown option for a message, unless it may be a part of a password."""
    return name if re.fullmatch("[a-z_]+", name) else "of this name; is a ? in the password to be written as %3F?"


def _options(options: dict[str, str]) -> dict[str, Any]:
    if unknown := options.keys() - _OF_ACCOUNT - _OF_ASYNCPG - _OF_SERVER - _WITHOUT_EQUAL - _OF_CISTERN:
        raise ValueError(f"there is no option {option_name(min(unknown))}")
    for_asyncpg = {_SQLALCHEMY_NAMES.get(name, name): value for name, value in options.items() if name in _OF_ASYNCPG}
    if for_asyncpg.get("sslmode", "prefer") not in _SSL_MODES:
        raise ValueError(f"sslmode must be one of {', '.join(_SSL_MODES)}")
    attributes = options.get("target_session_attrs", _DEFAULT_ATTRIBUTE)
    if attributes not in _SESSION_ATTRIBUTES:
        raise ValueError(f"target_session_attrs must be one of {', '.join(_SESSION_ATTRIBUTES)}")
    if for_asyncpg.get("sslrootcert") == "system":  # libpq's name for the authorities that the system trusts
        for_asyncpg["sslrootcert"] = ssl.get_default_verify_paths().cafile or "system"
    for name in _FILES & for_asyncpg.keys():
        if not Path(for_asyncpg[name]).is_file():
            raise ValueError(f"{name}: there is no file {for_asyncpg[name]}")
    return {
        "target_session_attrs": attributes,
        "timeout": _seconds(options.get("connect_timeout", "5")),
        "server_settings": {name: value for name, value in options.items() if name in _OF_SERVER},
        **({"dsn": f"postgresql:///?{urlencode(for_asyncpg)}"} if for_asyncpg else {}),
    }


def _address(text: str) -> tuple[str, int]:
    if text.startswith("/"):  # the directory of a socket
        return text, _PORT
    host, bracket, rest = text.partition("]") if text.startswith("[") else (text.partition(":")[0], "", "")
    port = rest.removeprefix(":") if bracket else text.partition(":")[2]
    return unquote(host.removeprefix("[")), _port(port) if port else _PORT


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise ValueError("its port is no number from 1 to 65535")  # a misplaced password may stand in its place
    return int(text)


def _seconds(text: str) -> float:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("connect_timeout must be a whole number of seconds")
    return float(text)
