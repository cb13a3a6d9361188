"""Settings are read from the environment and from .env; an invalid one is reported in one line that names it."""

import re
import ssl
import traceback
from pathlib import Path
from urllib.parse import urlencode

import pytest

from domain.errors import ConfigurationError
from domain.jobs.transport.job_queue import JobQueue
from domain.jobs.transport.redis_client import open_redis
from domain.postgres_url import parse_url
from domain.settings import Settings, load_settings, require_servers

SYSTEM_AUTHORITIES = ssl.get_default_verify_paths().cafile
URLS = {"database_url": "postgresql+asyncpg://u@h/d", "redis_url": "redis://h"}


@pytest.fixture
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory, and an environment without any setting."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CISTERN_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults_match_the_design(empty_environment: Path) -> None:
    settings = load_settings()

    assert (settings.max_jobs, settings.lease_seconds, settings.drain_seconds) == (10, 15.0, 25)
    assert (settings.stall_seconds, settings.retry_seconds, settings.max_attempts) == (120.0, 1.0, 8)
    assert settings.keep_jobs_days == 30
    assert (settings.log_format, settings.log_level) == ("console", "info")
    assert (settings.database_url, settings.redis_url) == ("", "")


def test_default_backend_is_in_the_data_directory(empty_environment: Path) -> None:
    assert load_settings().backends == {"local": f"file:{empty_environment / '.cistern' / 'volumes'}"}


def test_default_backend_follows_a_configured_data_directory(empty_environment: Path) -> None:
    assert load_settings(data_dir="/srv/x").backends == {"local": "file:/srv/x/volumes"}


def test_environment_is_read(empty_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_MAX_JOBS", "3")
    monkeypatch.setenv("CISTERN_BACKENDS", '{"a": "null:", "b": "memory:"}')
    settings = load_settings()

    assert settings.max_jobs == 3
    assert list(settings.backends) == ["a", "b"]


def test_dotenv_is_read(empty_environment: Path) -> None:
    (empty_environment / ".env").write_text('CISTERN_MAX_JOBS=7\nCISTERN_BACKENDS={"a": "null:"}\nSOMETHING_ELSE=1\n')
    settings = load_settings()

    assert (settings.max_jobs, settings.backends) == (7, {"a": "null:"})


def test_environment_overrides_dotenv(empty_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_environment / ".env").write_text("CISTERN_MAX_JOBS=7\n")
    monkeypatch.setenv("CISTERN_MAX_JOBS", "8")

    assert load_settings().max_jobs == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CISTERN_MAX_JOBS", "0"),
        ("CISTERN_MAX_JOBS", "1001"),
        ("CISTERN_MAX_JOBS", "ten"),
        ("CISTERN_MAX_JOBS", ""),
        ("CISTERN_LEASE_SECONDS", "0"),
        ("CISTERN_LEASE_SECONDS", "-1"),
        ("CISTERN_LEASE_SECONDS", "nan"),
        ("CISTERN_LEASE_SECONDS", "inf"),
        ("CISTERN_HEARTBEAT_TIMEOUT_SECONDS", "0"),
        ("CISTERN_HEARTBEAT_TIMEOUT_SECONDS", "6"),
        ("CISTERN_DRAIN_SECONDS", "-1"),
        ("CISTERN_DRAIN_SECONDS", "1.5"),
        ("CISTERN_STALL_SECONDS", "0"),
        ("CISTERN_RETRY_SECONDS", "soon"),
        ("CISTERN_MAX_ATTEMPTS", "0"),
        ("CISTERN_MAX_ATTEMPTS", "101"),
        ("CISTERN_KEEP_JOBS_DAYS", "0"),
        ("CISTERN_KEEP_JOBS_DAYS", "0.5"),
        ("CISTERN_LOG_FORMAT", "xml"),
        ("CISTERN_LOG_LEVEL", "loud"),
        ("CISTERN_DATABASE_URL", "postgresql+asyncpg://h:99999x/db"),
        ("CISTERN_DATABASE_URL", "postgresql+asyncpg://u:p/w@h:99999/db"),
        ("CISTERN_REDIS_URL", "redis://localhost:abc"),
        ("CISTERN_REDIS_URL", "rediss://:p@ss@localhost:-1/0"),
        ("CISTERN_BACKENDS", "file:volumes"),
        ("CISTERN_BACKENDS", "[1]"),
        ("CISTERN_BACKENDS", '{"a": 1}'),
    ],
)
def test_invalid_value_is_reported_in_one_line_naming_the_variable(
    empty_environment: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        load_settings()

    assert refused.value.message.startswith(f"{name}: ")
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://u:p:word/#?@h:5432/d",
        "postgresql+asyncpg://u@/d?host=/run/some:where",
        "postgresql+asyncpg://u@[::1]:5432/d",
    ],
)
def test_url_with_a_colon_outside_the_port_is_accepted(empty_environment: Path, url: str) -> None:
    assert load_settings(database_url=url).database_url == url


def test_every_invalid_value_is_reported(empty_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_MAX_JOBS", "0")
    monkeypatch.setenv("CISTERN_LOG_LEVEL", "loud")
    with pytest.raises(ConfigurationError, match=r"CISTERN_LOG_LEVEL: .*; CISTERN_MAX_JOBS: "):
        load_settings()


def test_invalid_value_in_dotenv_is_reported(empty_environment: Path) -> None:
    (empty_environment / ".env").write_text("CISTERN_LEASE_SECONDS=never\n")
    with pytest.raises(ConfigurationError, match=r"^CISTERN_LEASE_SECONDS: "):
        load_settings()


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix"])
def test_valid_server_urls_are_accepted(empty_environment: Path, scheme: str) -> None:
    settings = load_settings(**URLS | {"redis_url": f"{scheme}://h"})

    assert require_servers(settings) is settings


def test_missing_database_url_is_reported(empty_environment: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^CISTERN_DATABASE_URL must be"):
        require_servers(load_settings(**URLS | {"database_url": ""}))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite://", "must begin with postgresql://"),
        ("postgresql://h/d?foo=1", "there is no option foo"),
        ("postgresql://h/d?sslmode=on", "sslmode must be one of disable"),
        ("postgresql://h/d?sslrootcert=/no/such/file", "sslrootcert: there is no file /no/such/file"),
        ("postgresql://h/d?connect_timeout=soon", "connect_timeout must be"),
        ("postgresql://h1:1,h2:x/d", "its port is no number from 1 to 65535"),
    ],
)
def test_invalid_database_url_is_reported_with_the_reason(empty_environment: Path, url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^CISTERN_DATABASE_URL: {re.escape(reason)}"):
        load_settings(**URLS | {"database_url": url})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://h/d", {"hosts": [("h", 5432)], "database": "d"}),
        ("postgresql://u:p%40@h:1/d", {"user": "u", "password": "p@", "hosts": [("h", 1)]}),
        (
            "postgresql://u@h1,h2:2/d?target_session_attrs=read-write",
            {"hosts": [("h1", 5432), ("h2", 2)], "target_session_attrs": "read-write"},
        ),
        ("postgresql://u@/d?host=h1:1&host=h2:2", {"hosts": [("h1", 1), ("h2", 2)]}),
        ("postgresql://u@h/d?sslmode=require&channel_binding=require", {"dsn": "postgresql:///?sslmode=require"}),
        ("postgresql://u@h/d?connect_timeout=3&application_name=me", {"timeout": 3.0}),
        ("postgresql://u@h/d?application_name=me", {"server_settings": {"application_name": "me"}}),
        (
            "postgresql://u@h/d?sslmode=verify-full&sslrootcert=system",
            {"dsn": f"postgresql:///?{urlencode({'sslmode': 'verify-full', 'sslrootcert': SYSTEM_AUTHORITIES})}"},
        ),
        (
            "postgresql://u@h/d?ssl_min_protocol_version=TLSv1.3",
            {"dsn": "postgresql:///?ssl_min_protocol_version=TLSv1.3"},
        ),
        ("postgresql+asyncpg://u@/d?host=/run/x", {"hosts": [("/run/x", 5432)], "user": "u"}),
    ],
)
def test_database_url_of_a_hosted_service_is_understood(url: str, expected: dict[str, object]) -> None:
    assert parse_url(url).items() >= expected.items()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://h/0?foo=1", "there is no option foo"),
        ("redis://h/0?ssl_cert_reqs=none", "the option ssl_cert_reqs cannot be used here"),
        ("redis://h/0?socket_timeout=soon", "the option socket_timeout cannot be used here, or has an invalid value"),
        ("redis://h/0?decode_responses=true", "there is no option decode_responses"),
        ("redis://h/0?retry=1", "there is no option retry"),
        ("redis://h/0?protocol=9", "its host, its port, or the value of an option"),
        ("redis://h/jobs", "after the host comes the number of a database"),
        ("redis+sentinel://h/main/jobs", "after the host comes the number of a database"),
    ],
)
def test_unusable_redis_url_is_reported_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^CISTERN_REDIS_URL: {reason}"):
        JobQueue.open(url)


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://h"])
def test_invalid_redis_url_is_reported(empty_environment: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^CISTERN_REDIS_URL must be"):
        require_servers(load_settings(**URLS | {"redis_url": url}))


@pytest.mark.parametrize(("lease", "sweep"), [(15, 2.0), (10, 2.0), (3, 0.6)])
def test_sweep_interval_shrinks_with_short_leases(empty_environment: Path, lease: float, sweep: float) -> None:
    assert load_settings(lease_seconds=lease).sweep_seconds == pytest.approx(sweep)


def test_settings_are_immutable(empty_environment: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().max_jobs = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("misspelt", "nearest"),
    [
        ("CISTERN_MAXJOBS", "CISTERN_MAX_JOBS"),
        ("cistern_lease_second", "CISTERN_LEASE_SECONDS"),
        ("CISTERN_X", "CISTERN_"),
    ],
)
def test_unknown_variable_is_refused_with_the_nearest_name(
    empty_environment: Path, monkeypatch: pytest.MonkeyPatch, misspelt: str, nearest: str
) -> None:
    monkeypatch.setenv(misspelt, "5")
    with pytest.raises(
        ConfigurationError, match=f"^{misspelt}: there is no such variable; the nearest one is {nearest}"
    ):
        load_settings()


def test_unknown_variable_in_dotenv_is_refused(empty_environment: Path) -> None:
    (empty_environment / ".env").write_text("CISTERN_BACKEND={}\n")
    with pytest.raises(ConfigurationError, match="the nearest one is CISTERN_BACKENDS"):
        load_settings()


def test_variables_of_the_command_line_compose_and_the_tests_are_allowed(
    empty_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CISTERN_URL", "CISTERN_IMAGE", "CISTERN_TEST_LONG"):
        monkeypatch.setenv(name, "x")

    assert load_settings().max_jobs == 10


def test_hosts_are_names_separated_by_commas(empty_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_HOSTS", " Cistern.example.org, api,,[fd00::5] ")

    assert load_settings().hosts == ("cistern.example.org", "api", "[fd00::5]")


@pytest.mark.parametrize("hosts", ["http://api", "api:8000", "*", "*.example.org", "a b", "api/", "fd00::5"])
def test_what_is_no_host_name_is_refused(empty_environment: Path, monkeypatch: pytest.MonkeyPatch, hosts: str) -> None:
    monkeypatch.setenv("CISTERN_HOSTS", hosts)

    with pytest.raises(ConfigurationError, match=r"^CISTERN_HOSTS: a name without scheme and port is needed"):
        load_settings()


SECRET = "s3cr3t"
#: URLs with a password that is not encoded, or that stands where something else belongs.
REDIS_URLS = [
    *(f"redis://:{SECRET}{character}@host:6379/0" for character in "/#?]"),
    *(f"redis://:{SECRET}{character}@host" for character in "/#?"),
    *(f"redis://:a{character}{SECRET}@host:1/x" for character in "/#?["),
    *(f"redis://u:p@host{place}" for place in (f":{SECRET}/0", f"/{SECRET}", f"?{SECRET}=1", f"?db={SECRET}")),
    *(f"redis://u:p@h?{name}={SECRET}" for name in ("socket_timeout", "protocol", "max_connections", "ssl_cert_reqs")),
    *(f"rediss://u:{SECRET}@h?{name}={SECRET}" for name in ("ssl_cert_reqs", "health_check_interval", "none")),
    f"redis://u@host?password={SECRET}&none=1",
    f"redis://h?ssl_password={SECRET}",
    f"redis://[{SECRET}]@h",
    f"redis://:{SECRET}%zz@h:99999",
    f"{SECRET}://x",
    f":{SECRET}@host",
    f"redis+sentinel://:{SECRET}/@h/main",
    f"redis+sentinel://:{SECRET}@h1,h2/main/{SECRET}",
    f"redis+sentinel://:{SECRET}@h1:{SECRET}/main",
    f"redis+sentinel://:{SECRET}?@h,:{SECRET}/main",
    f"redis+sentinel://:{SECRET}@/main",
    f"redis+sentinel://:p@h/m?sentinel_password={SECRET}&none=1",
    f"unix://:{SECRET}@/x?db={SECRET}",
]
POSTGRES_URLS = [
    f"postgresql://u:{SECRET}:5432/d",
    f"postgresql://u:p@h:{SECRET}/d",
    f"postgresql://u:p@h:5432:{SECRET}/d",
    f"postgresql://u:p@h/d?{SECRET}=1",
    f"postgresql://h/d?port={SECRET}",
    f"postgresql://h1,h2:2/d?port=1,2,{SECRET}",
    f"postgresql://h/d?password={SECRET}&sslmode=x",
    *(f"postgresql://u:p@h/d?{name}={SECRET}" for name in ("sslmode", "connect_timeout", "target_session_attrs")),
    f"postgresql://u@h?sslpassword={SECRET}&sslkey=none",
    f"mysql://u:{SECRET}@h",
    f"postgresql:/u:{SECRET}@h",
    SECRET,
]


@pytest.mark.parametrize(
    ("name", "url"),
    [*(("REDIS_URL", url) for url in REDIS_URLS), *(("DATABASE_URL", url) for url in POSTGRES_URLS)],
)
def test_password_is_neither_in_the_line_nor_in_the_traceback_of_an_unusable_url(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CISTERN_DATABASE_URL", "postgresql://h/d")
    monkeypatch.setenv("CISTERN_REDIS_URL", "redis://h")
    monkeypatch.setenv(f"CISTERN_{name}", url)
    with pytest.raises(ConfigurationError) as raised:
        open_redis(require_servers(load_settings()).redis_url)

    assert f"CISTERN_{name}" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_passwords_in_files_are_those_of_the_urls(empty_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for server, url in (("DATABASE", "postgresql://app@h/d"), ("REDIS", "redis://h:1/2")):
        (empty_environment / server).write_text("p@:/%41?# x\n")
        monkeypatch.setenv(f"CISTERN_{server}_URL", url)
        monkeypatch.setenv(f"CISTERN_{server}_PASSWORD_FILE", server)
    settings = load_settings()

    assert parse_url(settings.database_url).items() >= {"user": "app", "password": "p@:/%41?# x"}.items()
    options = open_redis(settings.redis_url).connection_pool.connection_kwargs
    assert options.items() >= {"password": "p@:/%41?# x", "host": "h", "port": 1, "db": 2}.items()


@pytest.mark.parametrize(
    ("url", "content", "reason"),
    [
        ("redis://u:p@h", "x", "without a password"),
        ("", "x", "must be there"),
        ("redis://h", "\n", "is empty"),
        ("redis://h", None, "No such file"),
        ("redis://h", b"\xff", "not text"),
    ],
)
def test_file_with_a_password_that_cannot_be_used_is_reported(
    empty_environment: Path, monkeypatch: pytest.MonkeyPatch, url: str, content: str | bytes | None, reason: str
) -> None:
    if content is not None:
        (empty_environment / "file").write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("CISTERN_REDIS_URL", url)
    monkeypatch.setenv("CISTERN_REDIS_PASSWORD_FILE", "file")
    with pytest.raises(ConfigurationError, match=f"^CISTERN_REDIS_PASSWORD_FILE: .*{reason}"):
        load_settings()


@pytest.mark.parametrize(
    ("given", "address"),
    [("9464", ("127.0.0.1", 9464)), ("0.0.0.0:9464", ("0.0.0.0", 9464)), ("[::1]:65535", ("::1", 65535))],
)
def test_metrics_are_served_at_a_host_and_port(
    empty_environment: Path, monkeypatch: pytest.MonkeyPatch, given: str, address: tuple[str, int]
) -> None:
    monkeypatch.setenv("CISTERN_METRICS", given)

    assert load_settings().metrics == address


@pytest.mark.parametrize("given", ["", "host", "0", "65536", "-1", ":9464", "host:", "http://host:1x", "९"])
def test_what_is_no_address_of_metrics_is_refused(
    empty_environment: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("CISTERN_METRICS", given)
    with pytest.raises(ConfigurationError, match="CISTERN_METRICS: HOST:PORT or PORT is needed"):
        load_settings()


def test_the_directories_of_holders_are_absolute_paths(
    empty_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CISTERN_NODE_PATHS", "/srv, /mnt/data")
    assert load_settings().node_paths == (Path("/srv"), Path("/mnt/data"))
    monkeypatch.setenv("CISTERN_NODE_PATHS", "srv")
    with pytest.raises(ConfigurationError, match="CISTERN_NODE_PATHS: absolute paths are needed"):
        load_settings()
