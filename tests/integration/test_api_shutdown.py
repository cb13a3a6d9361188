"""The watcher of the API can be closed at any moment after it was opened."""

import asyncio

from domain.services import Services


async def test_watcher_can_be_closed_at_any_step_of_connecting(services: Services) -> None:
    async with asyncio.timeout(20):
        for steps in range(30):
            async with services.watcher.watching():
                for _ in range(steps):
                    await asyncio.sleep(0)
