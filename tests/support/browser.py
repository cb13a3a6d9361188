"""A real browser for tests of pages: Chromium, driven by playwright."""

import hashlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, async_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_CHROMIUM = "there is no Chromium: install Debian's package chromium"

_AXE = Path(__file__).parent / "axe" / "axe.min.js"
#: Runs axe-core on a page. Scripts of the page's own policy could not: it is put there by the browser.
_RUN_AXE = """
async () => (await axe.run(document, {resultTypes: ["violations"]})).violations.map(
  one => [one.id, one.nodes.map(node => node.target.join(" ") + ": " + node.failureSummary)]
)
"""


@asynccontextmanager
async def a_browser() -> AsyncIterator[Browser]:
    """Run Chromium for the duration of the block."""
    async with async_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield browser
        finally:
            await browser.close()


async def violations(page: Page) -> list[Any]:
    """Return what axe-core finds on a page, each with the elements."""
    await page.evaluate(_AXE.read_text())
    found: list[Any] = await page.evaluate(_RUN_AXE)
    return found


def axe_digests() -> dict[str, str]:
    """Return the SHA-256 sums of the vendored files."""
    files = [file for file in _AXE.parent.iterdir() if file.suffix != ".md"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
