"""The dashboard on a real port, and a browser that has signed in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass

import uvicorn
from playwright.async_api import Browser, Page, expect

from api.main import create_app
from domain.access.model import Role
from domain.access.service import NewKey
from domain.services import Services
from tests.support import keys
from tests.support.servers import serving

#: How long a page may take to show what is awaited, in milliseconds.
PATIENCE = 20_000


@dataclass
class Dashboard:
    """A page of the browser, and where the dashboard is."""

    page: Page
    address: str

    async def open(self, path: str) -> None:
        await self.page.goto(self.address + path)

    async def sign_in(self, key: str = keys.SECRET.text, path: str = "/") -> None:
        await self.open(path)
        await self.page.get_by_label("Key", exact=True).fill(key)
        await self.page.get_by_role("button", name="Sign in").click()
        await expect(self.page.get_by_role("button", name="Sign out")).to_be_visible()

    async def press(self, name: str) -> None:
        await self.page.get_by_role("button", name=name, exact=True).click()

    async def fill(self, label: str, text: str) -> None:
        """Fill a field of the open dialog."""
        await self.page.locator("dialog[open]").get_by_label(label, exact=True).fill(text)

    async def shows(self, text: str) -> None:
        await expect(self.page.get_by_text(text).first).to_be_visible(timeout=PATIENCE)


def port_of(server: uvicorn.Server) -> int:
    return int(server.servers[0].sockets[0].getsockname()[1])


@asynccontextmanager
async def served(services: Services, *, port: int = 0) -> AsyncIterator[int]:
    """Serve the API in this process, and yield its port."""
    async with serving(create_app(lambda: nullcontext(services)), port=port) as server:
        yield port_of(server)


@asynccontextmanager
async def a_page(browser: Browser, port: int) -> AsyncIterator[Dashboard]:
    """Open a page of a browser that knows nothing yet, and fail if the page has an error of its own."""
    context = await browser.new_context()
    page = await context.new_page()
    page.set_default_timeout(PATIENCE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Security Policy" in message.text else None)
    yield Dashboard(page, f"http://127.0.0.1:{port}")
    await context.close()
    assert errors == []


async def a_key(services: Services, role: Role) -> str:
    return (await services.keys.create(NewKey(f"the-{role}", role))).text
