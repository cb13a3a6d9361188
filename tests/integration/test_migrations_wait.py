"""`cistern migrate --wait`: PostgreSQL may still be on its way up when the schema is to be brought up to date."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from domain.db.migrations import migrate, wait_for_postgresql
from domain.embedded import EmbeddedServers
from domain.errors import DatabaseUnavailable, MigrationFailed

PATIENCE = 60
SOCKET = ".s.PGSQL.5432"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a path that is short enough for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


async def test_it_waits_until_postgresql_answers(servers: EmbeddedServers, place: Path) -> None:
    knocked = asyncio.Event()

    async def not_yet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        knocked.set()

    async with await asyncio.start_unix_server(not_yet, place / SOCKET):
        waiting = asyncio.create_task(wait_for_postgresql(url_of(servers, at=place), PATIENCE))
        await asyncio.wait_for(knocked.wait(), PATIENCE)
        assert not waiting.done()
        (place / SOCKET).unlink()
        (place / SOCKET).symlink_to(home(servers) / SOCKET)

        await asyncio.wait_for(waiting, PATIENCE)


async def test_it_does_not_wait_for_ever(servers: EmbeddedServers, place: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        await wait_for_postgresql(url_of(servers, at=place), 0.01)


async def test_a_refusal_is_an_answer_and_the_migration_says_what_is_wrong(servers: EmbeddedServers) -> None:
    url = servers.database_url.replace("/cistern?", "/missing?")
    await asyncio.wait_for(wait_for_postgresql(url, 10 * PATIENCE), PATIENCE)

    with pytest.raises(MigrationFailed, match='"missing" does not exist'):
        await asyncio.to_thread(migrate, url)


def home(servers: EmbeddedServers) -> Path:
    """The folder of the real socket."""
    return Path(str(make_url(servers.database_url).query["host"]))


def url_of(servers: EmbeddedServers, *, at: Path) -> str:
    """The server's address, if its socket were there."""
    return servers.database_url.replace(str(home(servers)), str(at))
