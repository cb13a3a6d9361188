"""Fixtures: servers started once per session, and an empty database for each test."""

import gc
import logging
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest
import redis
import structlog

from domain.db.migrations import migrate
from domain.embedded import EmbeddedServers, temporary_data_dir
from domain.logs import configure_logging
from domain.services import Services, open_services
from domain.settings import Settings
from tests.support import keys, roles
from tests.support.compiled import share_compiled_statements
from tests.support.databases import SharedDatabase, named, run
from tests.support.order import slow_tests_first
from tests.support.output_search import OutputSearch, with_password

# As in production; structlog's default renders tracebacks so slowly that leases expire meanwhile.
configure_logging(Settings(_env_file=None))
logging.getLogger("httpx").setLevel(logging.WARNING)  # the tests' own client logs every request
share_compiled_statements()

#: The tests' storage drivers; PYTHONPATH lets the processes started by a test import them too.
DRIVERS = Path(__file__).parent / "support" / "drivers"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(DRIVERS), os.environ.get("PYTHONPATH"))))

TEMPLATE = "cistern_template"


def pytest_configure(config: pytest.Config) -> None:
    """Search what the tests print for keys and passwords."""
    config.pluginmanager.register(OutputSearch())


#: Sets the log level of one module to debug.
LogAtDebug = Callable[[ModuleType], None]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()  # nothing of what the collection makes is garbage, and it lives until the end
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    processes = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if processes is not None:  # a single process runs all tests anyway: it keeps the order of the files
        items[:] = slow_tests_first(items, int(processes))


@pytest.fixture
def log_at_debug(monkeypatch: pytest.MonkeyPatch) -> LogAtDebug:
    def set_debug(module: ModuleType) -> None:
        at_debug = structlog.make_filtering_bound_logger("debug")
        log = structlog.wrap_logger(logging.getLogger(module.__name__), wrapper_class=at_debug)
        monkeypatch.setattr(module, "log", log)

    return set_debug


@pytest.fixture(scope="session")
def servers() -> Iterator[EmbeddedServers]:
    """Start PostgreSQL, with a migrated template database, and Redis."""
    with temporary_data_dir() as data_dir, EmbeddedServers(data_dir, durable=False) as servers:
        run(servers.database_url, f"CREATE DATABASE {TEMPLATE}")
        migrate(named(servers.database_url, TEMPLATE))
        roles.grant(named(servers.database_url, TEMPLATE))
        # The seeded schedule must not start a job in a test that is running at 02:00.
        run(named(servers.database_url, TEMPLATE), "DELETE FROM schedules", keys.INSERT)
        yield servers


@pytest.fixture(scope="session")
def shared_database(servers: EmbeddedServers) -> Iterator[SharedDatabase]:
    with closing(SharedDatabase(servers.database_url, TEMPLATE)) as shared:
        yield shared


@pytest.fixture
def database_url(shared_database: SharedDatabase) -> str:
    """A migrated, empty database; tests may change its schema."""
    shared_database.renew()
    return shared_database.url


@pytest.fixture
def empty_url(servers: EmbeddedServers) -> Iterator[str]:
    """A database without any migrations."""
    name = f"test_{uuid4().hex}"
    run(servers.database_url, f"CREATE DATABASE {name} TEMPLATE template0")
    yield named(servers.database_url, name)
    run(servers.database_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_url(servers: EmbeddedServers) -> str:
    """The URL of the session's Redis, which is flushed first."""
    client = redis.Redis.from_url(servers.redis_url)
    client.flushall()
    client.close()
    return servers.redis_url


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    """Settings for these servers, with storage in memory."""
    return Settings(
        database_url=with_password(database_url),
        redis_url=with_password(redis_url),
        data_dir=tmp_path,
        backends={"memory": "memory:"},
        lease_seconds=3,
        heartbeat_timeout_seconds=0.5,
        retry_seconds=0.05,
        _env_file=None,
    )


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[Services]:
    """The real services, on an empty database and Redis."""
    async with open_services(settings, adopt=True) as services:
        yield services
