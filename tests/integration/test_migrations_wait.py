"""`cistern migrate --wait`: PostgreSQL may still be starting when the schema is migrated."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from domain.db.migrations import migrate, wait_for_postgresql
from domain.embedded import EmbeddedServers
from domain.errors import DatabaseUnavailable, MigrationFailed

TIMEOUT_SECONDS = 60
SOCKET = ".s.PGSQL.5432"


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


async def test_wait_ends_when_postgresql_answers(servers: EmbeddedServers, socket_dir: Path) -> None:
    connected = asyncio.Event()

    async def close_connection(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        connected.set()

    async with await asyncio.start_unix_server(close_connection, socket_dir / SOCKET):
        waiting = asyncio.create_task(wait_for_postgresql(url_with(servers, socket_dir), TIMEOUT_SECONDS))
        await asyncio.wait_for(connected.wait(), TIMEOUT_SECONDS)
        assert not waiting.done()
        (socket_dir / SOCKET).unlink()
        (socket_dir / SOCKET).symlink_to(real_socket_dir(servers) / SOCKET)

        await asyncio.wait_for(waiting, TIMEOUT_SECONDS)


async def test_wait_times_out(servers: EmbeddedServers, socket_dir: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        await wait_for_postgresql(url_with(servers, socket_dir), 0.01)


async def test_error_response_ends_the_wait_and_the_migration_reports_it(servers: EmbeddedServers) -> None:
    url = servers.database_url.replace("/cistern?", "/missing?")
    await asyncio.wait_for(wait_for_postgresql(url, 10 * TIMEOUT_SECONDS), TIMEOUT_SECONDS)

    with pytest.raises(MigrationFailed, match='"missing" does not exist'):
        await asyncio.to_thread(migrate, url)


def real_socket_dir(servers: EmbeddedServers) -> Path:
    return Path(str(make_url(servers.database_url).query["host"]))


def url_with(servers: EmbeddedServers, socket_dir: Path) -> str:
    """Return the URL of the server with its socket in another directory."""
    return servers.database_url.replace(str(real_socket_dir(servers)), str(socket_dir))
