"""Lists that others change while somebody walks them: what was there throughout is seen, and seen once."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
from sqlalchemy import text
from uuid_utils.compat import uuid7

from domain.services import Services
from domain.volumes.model import Volume
from tests.support.bulk import add_volumes


async def walk(client: httpx.AsyncClient, address: str, limit: int) -> AsyncIterator[list[dict[str, Any]]]:
    cursor: str | None = None
    while True:
        parameters = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
        page = (await client.get(address, params=parameters)).json()
        yield page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


async def come_and_go(services: Services, left: asyncio.Event) -> None:
    """Insert five volumes and delete five of those that are to go, again and again."""
    number = 0
    while True:
        async with services.database.transaction() as session:
            for _ in range(5):
                number += 1
                columns = {"backend": "memory", "state": "available", "size": 1, "version": 1, "labels": {}}
                session.add(Volume(id=uuid7(), name=f"new-{number}", **columns))
            goes = "SELECT id FROM volumes WHERE labels ? 'goes' ORDER BY random() LIMIT 5"
            gone = await session.execute(text(f"DELETE FROM volumes WHERE id IN ({goes}) RETURNING id"))
            if gone.all():
                left.set()
        await asyncio.sleep(0)


async def test_five_thousand_volumes_are_each_seen_once_although_others_come_and_go(
    services: Services, client: httpx.AsyncClient
) -> None:
    stays = {str(volume_id) for volume_id in await add_volumes(services, 5000, backend="memory")}
    async with services.database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO volumes (id, name, backend, state, size, version, labels)"
                " SELECT overlay(id::text placing 'f' from 36)::uuid, 'goes-' || name, backend, state, size, version,"
                """ '{"goes": "1"}' FROM volumes WHERE right(id::text, 1) <> 'f'"""
            )
        )
    left = asyncio.Event()
    others = asyncio.create_task(come_and_go(services, left))
    seen: Counter[str] = Counter()
    try:
        async for items in walk(client, "/api/v1/volumes", 150):
            await left.wait()  # somebody really goes between two pages
            left.clear()
            seen.update(item["id"] for item in items)
    finally:
        others.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await others

    assert stays <= seen.keys()
    assert set(seen.values()) == {1}
    assert seen.keys() - stays, "those that went later were seen too"
