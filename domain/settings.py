"""Settings from the environment, read once when a process starts and passed on as plain values."""

import difflib
import os
import re
import socket
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import quote, urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from domain.errors import ConfigurationError
from domain.postgres_url import parse_url
from domain.telemetry import FROM_ENVIRONMENT

PREFIX = "CISTERN_"
REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://")
#: Variables that are no settings of a process: for the command line, for Compose and, by their prefix, for the tests.
_OTHER_VARIABLES = frozenset(f"{PREFIX}{name}" for name in ("URL", "CA_FILE", "KEY", "PROJECT", "IMAGE", "SECRETS"))
_TEST_PREFIX = f"{PREFIX}TEST_"

_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\]")

Seconds = Annotated[float, Field(gt=0, le=86_400)]
#: Names of nodes, as a regular expression.
NODE_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"


def _with_valid_port(url: str) -> str:
    """Check a URL's port here: the error of the library that uses it later would not name the variable."""
    try:
        # Skip everything up to the last @: a password may contain any character. Sentinels are several hosts.
        for place in url.partition("://")[2].rpartition("@")[2].split(","):
            _ = urlsplit(f"//{place}").port
    except ValueError as error:
        reason = str(error) if "out of range" in str(error) else "its host or port is malformed"
        raise PydanticCustomError("port", "{reason}", {"reason": reason}) from error
    return url


def _postgres_url(url: str) -> str:
    try:
        _ = url and parse_url(url)
    except ValueError as error:
        raise PydanticCustomError("url", "{reason}", {"reason": str(error)}) from error
    return url


def _host_names(names: object) -> object:
    """Split names at commas, and refuse what a `Host` header without its port cannot be."""
    found = (
        tuple(name.strip().lower() for name in names.split(",") if name.strip()) if isinstance(names, str) else names
    )
    for name in found if isinstance(found, tuple) else ():
        if not _HOST_NAME.fullmatch(name):
            reason = "a name without scheme and port is needed, like cistern.example.org; separate several by commas"
            raise PydanticCustomError("host", "{reason}", {"reason": reason})
    return found


def _traces(value: object) -> object:
    """Return ``true`` or the URL of a collector; None if traces are off."""
    text = str(value).strip() if value is not None else ""
    if text.lower() in {"", "0", "false", "no", "off"}:
        return None
    if text.lower() in {"1", "true", "yes", "on"}:
        return FROM_ENVIRONMENT
    if not text.startswith(("http://", "https://")) or not urlsplit(_with_valid_port(text)).hostname:
        reason = "true, false or the URL of an OTLP endpoint is needed, like http://collector:4318"
        raise PydanticCustomError("traces", "{reason}", {"reason": reason})
    return text


def _directories(names: object) -> object:
    """Split paths at commas."""
    found = tuple(Path(name.strip()) for name in names.split(",") if name.strip()) if isinstance(names, str) else names
    for path in found if isinstance(found, tuple) else ():
        if not path.is_absolute():
            reason = "absolute paths are needed, like /srv,/mnt; separate several by commas"
            raise PydanticCustomError("directory", "{reason}", {"reason": reason})
    return found


Directories = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_directories)]
HostNames = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_host_names)]
DatabaseUrl = Annotated[str, AfterValidator(_postgres_url)]
Traces = Annotated[str | None, BeforeValidator(_traces)]
ServerUrl = Annotated[str, AfterValidator(_with_valid_port)]


def _metrics_address(given: object) -> object:
    """Split HOST:PORT or PORT."""
    if not isinstance(given, str):
        return given
    host, separator, port = given.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16) or (separator and not host):
        raise PydanticCustomError("address", "{reason}", {"reason": "HOST:PORT or PORT is needed, like 127.0.0.1:9464"})
    return host.strip("[]") or "127.0.0.1", int(port)


MetricsAddress = Annotated[tuple[str, int] | None, NoDecode, BeforeValidator(_metrics_address)]


class LogSettings(BaseSettings):
    """Log settings, readable even if the other settings keep the process from starting."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(LogSettings):
    """The environment's ``CISTERN_*`` variables; ``.env`` is read too. Times are in seconds."""

    data_dir: Path = Path(".cistern")
    database_url: DatabaseUrl = ""
    #: Maximum duration of a transaction, with its commit.
    database_timeout_seconds: Annotated[float, Field(ge=1, le=300)] = 15.0
    redis_url: ServerUrl = ""
    #: Files with the passwords of these two URLs, which then have none themselves.
    database_password_file: Path | None = None
    redis_password_file: Path | None = None
    backends: dict[str, str] = Field(default_factory=dict)
    #: Hosts that the API serves, besides localhost, 127.0.0.1 and [::1].
    hosts: HostNames = ()
    #: Hosts that webhooks may be sent to.
    webhook_hosts: HostNames = ()
    #: Units per second that a caller may use of one API process, see `api.rate_limits`. A burst of ten seconds' worth
    #: must hold the largest request.
    rate_limit: Annotated[float, Field(ge=5, le=1_000_000)] | None = None
    max_jobs: int = Field(default=10, ge=1, le=1000)
    lease_seconds: Seconds = 15.0
    #: Minimum time that a heartbeat waits for PostgreSQL before it is tried again on another connection.
    heartbeat_timeout_seconds: Annotated[float, Field(gt=0, le=5)] = 2.0
    drain_seconds: int = Field(default=25, ge=0, le=86_400)
    stall_seconds: Seconds = 120.0
    blocking_call_seconds: Seconds = 1800.0
    retry_seconds: Seconds = 1.0
    max_attempts: int = Field(default=8, ge=1, le=100)
    busy_seconds: Seconds = 600.0
    max_concurrent: int = Field(default=100, ge=1, le=10_000)
    #: The name of this host among those that use volumes; the host name if it is not set.
    node: Annotated[str, Field(pattern=f"^({NODE_NAME})?$")] = ""
    #: Where the node mounts volumes.
    node_dir: Path = Path("/var/lib/cistern/mounts")
    #: Below which directories holders may have volumes mounted; none: everywhere but in those of the system.
    node_paths: Directories = ()
    #: Seconds between two trims of a mounted file system.
    trim_seconds: Annotated[float, Field(gt=0, le=31_536_000)] = 604_800.0
    keep_audit_days: int = Field(default=400, ge=1, le=36_500)
    keep_history_days: int = Field(default=30, ge=1, le=36_500)
    keep_jobs_days: int = Field(default=30, ge=1, le=36_500)
    heartbeat_file: Path | None = None
    #: Where the process serves its metrics: HOST:PORT, or PORT for that of 127.0.0.1.
    metrics: MetricsAddress = None
    #: ``true``, or the URL of an OTLP endpoint; None: no traces.
    traces: Traces = None

    @model_validator(mode="after")
    def _names_of_this_machine(self) -> Self:
        if not self.node:
            object.__setattr__(self, "node", socket.gethostname())
        if not self.backends:
            url = f"file:{self.data_dir.absolute() / 'volumes'}"
            object.__setattr__(self, "backends", {"local": url})
        return self

    @property
    def sweep_seconds(self) -> float:
        """Seconds between two sweeps of the maintenance tasks: 2 s, or a fifth of a lease if that is shorter."""
        return min(2.0, self.lease_seconds / 5)


def load_log_settings() -> LogSettings:
    """Read the log settings; fall back to the defaults if they are invalid, as `load_settings` reports the error."""
    try:
        return LogSettings()
    except ValidationError:
        return LogSettings.model_construct()


def load_settings(**overrides: object) -> Settings:
    """Read the settings.

    Raises:
        ConfigurationError: names each variable that is invalid or does not exist, and the reason.
    """
    _refuse_unknown_variables()
    try:
        return _with_passwords(Settings(**overrides))  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [
            f"{PREFIX}{'_'.join(str(part) for part in problem['loc'][:1]).upper()}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise ConfigurationError("; ".join(lines)) from None  # the cause quotes values, and so passwords
    except SettingsError as error:
        field = re.findall(r'field "(\w+)"', str(error))
        raise ConfigurationError(f"{PREFIX}{'_'.join(field).upper()}: not JSON") from None


def _with_passwords(settings: Settings) -> Settings:
    """Put the passwords in files into the URLs.

    Raises:
        ConfigurationError: a file cannot be read, or its URL is missing or has a password already.
    """
    urls = {}
    for server in ("database", "redis"):
        file, url = getattr(settings, f"{server}_password_file"), getattr(settings, f"{server}_url")
        if file is None:
            continue
        variable = f"{PREFIX}{server.upper()}_PASSWORD_FILE"
        scheme, separator, rest = url.partition("://")
        account, _, place = rest.rpartition("@")
        user, has_password, password = account.partition(":")
        wanted = quote(password_in(file, variable), safe="")
        if not separator or (has_password and password != wanted):  # processes of `cistern up` get both
            raise ConfigurationError(f"{variable}: {PREFIX}{server.upper()}_URL must be there, without a password")
        urls[f"{server}_url"] = f"{scheme}://{user}:{wanted}@{place}"
    return settings.model_copy(update=urls)


def password_in(file: Path, name: str) -> str:
    """Return the password in a file, without the line break at its end; ``name`` stands before an error.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
    """
    try:
        password = file.read_text().rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"{name}: {file}: {getattr(error, 'strerror', None) or 'not text'}") from None
    if not password:
        raise ConfigurationError(f"{name}: {file} is empty")
    return password


def _refuse_unknown_variables() -> None:
    """Refuse a misspelt variable, which would be ignored otherwise."""
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields} | _OTHER_VARIABLES
    given = {name for name in (*os.environ, *dotenv_values(".env")) if name.upper().startswith(PREFIX)}
    for name in sorted(given):
        if name.upper() not in known and not name.upper().startswith(_TEST_PREFIX):
            (nearest,) = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0)
            raise ConfigurationError(f"{name}: there is no such variable; the nearest one is {nearest}")


def require_database(settings: Settings) -> Settings:
    """Return the settings if they contain a PostgreSQL URL.

    Raises:
        ConfigurationError: names the variable.
    """
    if not settings.database_url:
        raise ConfigurationError(f"{PREFIX}DATABASE_URL must be postgresql://...")
    return settings


def require_servers(settings: Settings) -> Settings:
    """Return the settings if they contain a PostgreSQL URL and a Redis URL.

    Raises:
        ConfigurationError: names the variable that is missing or malformed.
    """
    hint = "`cistern up` starts private servers and needs neither"
    if not settings.database_url:
        raise ConfigurationError(f"{PREFIX}DATABASE_URL must be postgresql://...; {hint}")
    if not settings.redis_url.startswith(REDIS_SCHEMES):
        raise ConfigurationError(f"{PREFIX}REDIS_URL must be one of {', '.join(REDIS_SCHEMES)}; {hint}")
    return settings
