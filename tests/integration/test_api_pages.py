"""Pages of a list that changes meanwhile: a row that exists throughout is listed exactly once."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
from sqlalchemy import text
from uuid_utils.compat import uuid7

from domain.db.base import DEFAULT_PROJECT
from domain.services import Services
from domain.volumes.model import Volume
from tests.support.bulk import add_volumes


async def pages(client: httpx.AsyncClient, path: str, limit: int) -> AsyncIterator[list[dict[str, Any]]]:
    cursor: str | None = None
    while True:
        parameters = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        page = (await client.get(path, params=parameters)).json()
        yield page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


async def change_volumes(services: Services, deleted: asyncio.Event) -> None:
    """Insert five volumes and delete five of those labelled `temporary`, forever."""
    number = 0
    while True:
        async with services.database.transaction() as session:
            for _ in range(5):
                number += 1
                columns = {"backend": "memory", "state": "available", "size": 1, "version": 1, "labels": {}}
                session.add(Volume(id=uuid7(), name=f"new-{number}", **columns, project_id=DEFAULT_PROJECT))
            chosen = "SELECT id FROM volumes WHERE labels ? 'temporary' ORDER BY random() LIMIT 5"
            result = await session.execute(text(f"DELETE FROM volumes WHERE id IN ({chosen}) RETURNING id"))
            if result.all():
                deleted.set()
        await asyncio.sleep(0)


async def test_pages_list_5000_volumes_once_despite_concurrent_changes(
    services: Services, client: httpx.AsyncClient
) -> None:
    permanent = {str(volume_id) for volume_id in await add_volumes(services, 5000, backend="memory")}
    async with services.database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO volumes (id, name, backend, state, size, version, labels)"
                " SELECT overlay(id::text placing 'f' from 36)::uuid, 'tmp-' || name, backend, state, size, version,"
                """ '{"temporary": "1"}' FROM volumes WHERE right(id::text, 1) <> 'f'"""
            )
        )
    deleted = asyncio.Event()
    changes = asyncio.create_task(change_volumes(services, deleted))
    listed: Counter[str] = Counter()
    try:
        async for items in pages(client, "/api/v1/volumes", 150):
            await deleted.wait()  # at least one volume is deleted between two pages
            deleted.clear()
            listed.update(item["id"] for item in items)
    finally:
        changes.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await changes

    assert permanent <= listed.keys()
    assert set(listed.values()) == {1}
    assert listed.keys() - permanent, "volumes that were deleted later are listed too"
