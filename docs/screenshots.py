"""Take pictures of every page of the dashboard: ``python docs/screenshots.py`` writes ``build/screenshots``.

It runs a stack of its own with volumes, jobs and keys that tell something, and needs Chromium. ``--docs`` also renews
those that the documentation shows.
"""

import random
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx
from playwright.async_api import Browser, Page, async_playwright

from api.cli.key_file import read_key_file
from api.cli.stack import Stack, free_port, run
from domain.db.database import Database
from domain.embedded import EmbeddedServers, temporary_data_dir
from domain.settings import Settings, load_settings
from domain.volumes.history.model import VolumeSample

ROOT: Final = Path(__file__).resolve().parents[1]
TARGET: Final = ROOT / "build" / "screenshots"
IN_DOCS: Final = ROOT / "docs" / "images"
#: The pictures in the documentation.
SHOWN: Final = ("overview-light-1280", "job-dark-1280", "volume-light-1280", "overview-dark-390")
SCHEMES: Final = ("light", "dark")
SIZES: Final = ((1280, 800), (390, 844))
_MIB: Final = 2**20
_VOLUMES: Final = 24


class Pictures:
    """A stack with something to see, and the pictures of its pages."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    async def run(self) -> None:
        """Fill the stack, and take all pictures."""
        key = read_key_file(self._stack.settings.data_dir)
        headers = {"Authorization": f"Bearer {key}", "Prefer": "wait=20"}
        async with httpx.AsyncClient(base_url=f"{self._stack.url}/api/v1", headers=headers, timeout=60) as client:
            paths = await fill(client, self._stack.settings)
        async with a_browser() as browser:
            for scheme in SCHEMES:
                for width, height in SIZES:
                    context = await browser.new_context(
                        viewport={"width": width, "height": height}, color_scheme=scheme
                    )
                    await self._take(await context.new_page(), str(key), paths, f"{scheme}-{width}")
                    await context.close()

    async def _take(self, page: Page, key: str, paths: dict[str, str], suffix: str) -> None:
        await page.goto(f"{self._stack.url}/sign-in")
        await page.screenshot(path=TARGET / f"sign-in-{suffix}.png")
        await page.get_by_label("Key", exact=True).fill(key)
        await page.get_by_role("button", name="Sign in").click()
        await page.get_by_role("button", name="Sign out").wait_for()
        for name, path in paths.items():
            await page.goto(self._stack.url + path)
            await page.get_by_role("heading", level=1).wait_for()
            await page.screenshot(path=TARGET / f"{name}-{suffix}.png", full_page=True)
            if f"{name}-{suffix}" in SHOWN:  # without what would have to be scrolled to
                await page.screenshot(path=TARGET / "docs" / f"{name}-{suffix}.png")
        dialogs = {"volumes": "Create a volume…", "schedules": "Create a schedule…", "settings": "Create a webhook…"}
        for name, button in dialogs.items():
            await page.goto(f"{self._stack.url}/{name}")
            await page.get_by_role("button", name=button).click()
            await page.screenshot(path=TARGET / f"{name}-dialog-{suffix}.png")


async def fill(client: httpx.AsyncClient, settings: Settings) -> dict[str, str]:
    """Make volumes, a bulk job with a failure, snapshots, a schedule and keys; return the paths of the pages."""
    for number in range(1, _VOLUMES + 1):
        team = ("search", "billing", "mail")[number % 3]
        body: dict[str, Any] = {"name": f"{team}-{number}", "size": 64 * _MIB, "labels": {"team": team}}
        if number % 3 == 0:
            body["autogrow"] = {"usage_above": 80, "percent": 20, "up_to": "1GiB"}
        await client.post("/volumes", json=body)
    volumes = (await client.get("/volumes", params={"limit": 100})).json()["items"]
    write_data([Path(volume["path"]) for volume in volumes])
    await write_history(settings.data_dir, volumes[0]["id"])
    bulk = (await client.post("/volumes/expand", json={"percent": 25, "max_concurrent": 4})).json()
    for name in ("monday", "before-the-upgrade"):
        await client.post(f"/volumes/{volumes[0]['id']}/snapshots", json={"name": name})
    nightly = (await client.get("/schedules")).json()["items"][0]["id"]
    await client.post(f"/schedules/{nightly}/run")
    schedule = {"name": "snapshots", "cron": "30 3 * * 1", "time_zone": "Europe/Berlin", "action": "bulk.snapshot"}
    await client.post("/schedules", json={**schedule, "params": {"name": "weekly", "keep_last": 4}})
    for name, role in (("alice", "owner"), ("backup", "operator"), ("grafana", "viewer")):
        await client.post("/keys", json={"name": name, "role": role, "expires_in_days": 90})
    paths = {"overview": "/", "jobs": "/jobs", "job": f"/jobs/{bulk['id']}", "volumes": "/volumes"}
    paths |= {"volume": f"/volumes/{volumes[0]['id']}", "schedules": "/schedules", "schedule": f"/schedules/{nightly}"}
    return paths | {"settings": "/settings", "not-found": f"/jobs/{nightly}"}


def write_data(files: Sequence[Path]) -> None:
    """Use a part of each volume, and lose the data of one."""
    draw = random.Random(7)  # noqa: S311 (the same pictures each time)
    for path in files:
        with path.open("r+b") as file:
            file.write(b"x" * draw.randrange(60 * _MIB))
    files[3].unlink()


async def write_history(data_dir: Path, volume_id: str) -> None:
    """Give a volume three weeks that it has not lived through."""
    used, samples = 2 * _MIB, []
    for days in range(21, 0, -1):
        at, size = datetime.now(UTC) - timedelta(days=days), (8 if used < 6 * _MIB else 64) * _MIB
        samples.append(VolumeSample(volume_id=UUID(volume_id), at=at, size=size, used=used))
        used += used // 9
    servers = EmbeddedServers(data_dir, postgres=True, redis=False)
    database = Database(servers.application_url, pool_size=1, timeout=10)
    async with database.transaction() as session:
        session.add_all(samples)
    await database.close()


@asynccontextmanager
async def a_browser() -> AsyncIterator[Browser]:
    """Run the installed Chromium for the duration of the block."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("there is no Chromium: install Debian's package chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        await browser.close()


def main() -> None:
    """Take all pictures; with ``--docs`` copy some of them to the documentation."""
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir(parents=True)
    with temporary_data_dir() as data_dir:
        settings = load_settings(data_dir=data_dir, database_url="", redis_url="", backends={})
        stack = Stack(settings=settings, port=free_port(), workers=3)
        run(stack, Pictures(stack).run, output=lambda *_: None)
    if "--docs" in sys.argv:
        for name in SHOWN:
            shutil.copy(TARGET / "docs" / f"{name}.png", IN_DOCS / f"{name}.png")
    number = len([*TARGET.glob("*.png")])
    print(f"{number} pictures are in {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
