"""The front can be shut again at any moment after it was opened."""

import asyncio

from domain.services import Services


async def test_watching_ends_at_whatever_step_of_connecting_it_is_told_to(services: Services) -> None:
    async with asyncio.timeout(20):
        for steps in range(30):
            async with services.watcher.watching():
                for _ in range(steps):
                    await asyncio.sleep(0)
