"""The dashboard in a real browser: what people do there, and that it says so when the server is away."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from playwright.async_api import Browser, expect
from uuid_utils.compat import uuid7

from domain.access.model import Role
from domain.services import Services
from domain.settings import Settings
from tests.integration.conftest import RunningWorker
from tests.integration.dashboard_builders import PATIENCE, Dashboard, a_key, a_page, served
from tests.integration.job_builders import a_volume, sql
from tests.support.browser import CHROMIUM, NO_CHROMIUM, a_browser, violations

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]
SCRIPT = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"


@pytest.fixture
def settings(bulk_settings: Settings) -> Settings:
    """Storage that can be held up, so that jobs can be watched."""
    return bulk_settings


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with a_browser() as browser:
        yield browser


@pytest.fixture
async def dashboard(services: Services, browser: Browser) -> AsyncIterator[Dashboard]:
    """A browser that has signed in with a system key."""
    async with served(services) as port, a_page(browser, port) as dashboard:
        await dashboard.sign_in()
        yield dashboard


async def test_volume_is_created_and_its_job_watched_to_the_end(
    dashboard: Dashboard, settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    page = dashboard.page
    await dashboard.open("/volumes")
    await dashboard.press("Create a volume…")
    await dashboard.fill("Name", "from-the-browser")
    await dashboard.fill("Size", "16MiB")
    await dashboard.fill("Labels", "team: search\ntier: gold")
    await dashboard.press("Create")
    await page.wait_for_url("**/jobs/*")
    await dashboard.shows("Waits for a worker")
    async with running_worker(settings):
        await dashboard.shows("Succeeded")
    await page.get_by_role("link", name="from-the-browser").first.click()

    await dashboard.shows("16 MiB")
    await dashboard.shows("team: search")


async def test_bar_of_a_bulk_expansion_moves_and_what_failed_is_retried(
    dashboard: Dashboard, services: Services, settings: Settings, running_worker: RunningWorker, tmp_path: Path
) -> None:
    page = dashboard.page
    volumes = [await a_volume(services, backend="null", name=f"volume-{number}") for number in range(60)]
    (tmp_path / "faults").write_text(f"expand:storage-full {volumes[7].id}\n")
    async with running_worker(settings):
        await dashboard.open("/volumes")
        await dashboard.press("Expand many…")
        await dashboard.fill("How much", "20")
        await dashboard.fill("At once", "1")
        await dashboard.press("Show what it would do")
        await dashboard.shows("Of 60 volumes 60 would grow")
        await dashboard.press("Expand")
        await page.wait_for_url("**/jobs/*")
        while not await sql(services, "SELECT 1 FROM jobs WHERE kind = 'bulk.expand' AND succeeded > 0"):
            await asyncio.sleep(0.01)
        (tmp_path / "gate").touch()
        bar = page.get_by_role("progressbar", name="Progress", exact=True)
        async with asyncio.timeout(PATIENCE / 1000):
            while not 0 < await bar.evaluate("bar => bar.value") < 100:
                await asyncio.sleep(0.05)
        (tmp_path / "gate").unlink()
        await dashboard.shows("Ended in part")

        await page.get_by_label("Status of the volumes").select_option("failed")
        await dashboard.shows("storage-full")
        (tmp_path / "faults").write_text("")
        await dashboard.press("Retry what failed")
        await dashboard.shows("Succeeded")
        await dashboard.shows("1 of 1 volumes")


async def test_job_is_cancelled_after_a_question(dashboard: Dashboard, services: Services) -> None:
    volume = await a_volume(services, backend="null")
    await dashboard.open(f"/volumes/{volume.id}")
    await dashboard.press("Expand…")
    await dashboard.fill("How much", "50")
    await dashboard.press("Expand")
    await dashboard.page.wait_for_url("**/jobs/*")
    await dashboard.press("Cancel")
    await dashboard.press("Let it run")
    assert await sql(services, "SELECT status FROM jobs") == [("queued",)]
    await dashboard.press("Cancel")
    await dashboard.press("Cancel it")
    await dashboard.shows("Cancelled")

    assert await sql(services, "SELECT status FROM jobs") == [("cancelled",)]


async def test_refused_change_says_why_and_changes_nothing(dashboard: Dashboard, services: Services) -> None:
    await a_volume(services, backend="null", name="taken")
    await dashboard.open("/volumes")
    await dashboard.press("Create a volume…")
    await dashboard.fill("Name", "taken")
    await dashboard.fill("Size", "1MiB")
    await dashboard.press("Create")
    await dashboard.shows("There is already a volume named 'taken'.")

    assert await sql(services, "SELECT count(*) FROM jobs") == [(0,)]


async def test_schedule_is_created_edited_paused_and_run(dashboard: Dashboard, services: Services) -> None:
    page = dashboard.page
    await dashboard.open("/schedules")
    await dashboard.press("Create a schedule…")
    await dashboard.fill("Name", "weekly")
    await dashboard.fill("When", "30 3 * * 1")
    await dashboard.shows("every Monday at 03:30")
    await dashboard.fill("When", "never")
    await dashboard.shows("cron")
    await dashboard.fill("When", "30 3 * * 1")
    await dashboard.press("Create")
    await page.wait_for_url(re.compile("/schedules/[0-9a-f-]{36}"))
    await dashboard.press("Edit…")
    await dashboard.fill("With", '{"percent": 5}')
    await dashboard.press("Save")
    await dashboard.shows('"percent": 5')
    await dashboard.press("Pause the schedule")
    await dashboard.shows("It is paused.")
    await dashboard.press("Run now")
    await dashboard.press("Run it")
    await page.wait_for_url("**/jobs/*")

    assert await sql(services, "SELECT cron, enabled, params ->> 'percent' FROM schedules") == [
        ("30 3 * * 1", False, "5.0")
    ]


async def test_key_is_shown_once_and_revoked(dashboard: Dashboard) -> None:
    await dashboard.open("/settings")
    await dashboard.press("Create a key…")
    await dashboard.fill("Name", "backup")
    await dashboard.press("Create")
    await expect(dashboard.page.locator("#new-key-text")).to_have_text(re.compile("^cst_"))
    await dashboard.press("Done")
    row = dashboard.page.locator("#keys").get_by_role("row", name="backup")
    await row.get_by_role("button", name="Revoke").click()
    await dashboard.press("Revoke it")

    await expect(row).to_contain_text("revoked")
    assert "cst_" not in (await dashboard.page.locator("#new-key-text").text_content() or "")


async def test_viewer_sees_no_buttons(services: Services, browser: Browser) -> None:
    volume = await a_volume(services, backend="null")
    await sql(
        services,
        "INSERT INTO jobs (id, kind, status, version, params, attempt, max_attempts, epoch, finished_at, error)"
        " VALUES (:id, 'volume.expand', 'failed', 2, '{}', 1, 8, 0, now(), '{\"code\": \"a\", \"detail\": \"b\"}')",
        id=(job_id := uuid4()),
    )
    async with served(services) as port, a_page(browser, port) as dashboard:
        await dashboard.sign_in(await a_key(services, Role.VIEWER))
        paths = ("/", "/volumes", f"/volumes/{volume.id}", "/jobs", f"/jobs/{job_id}", "/schedules", "/settings")
        for path in paths:
            await dashboard.open(path)
            names = set(await dashboard.page.get_by_role("button").all_inner_texts())
            assert names <= {"Sign out", "Pause updates", "Filter"}, path


async def test_session_begins_with_a_key_and_ends_with_sign_out(services: Services, browser: Browser) -> None:
    async with served(services) as port, a_page(browser, port) as dashboard:
        await dashboard.open("/")
        await dashboard.page.get_by_label("Key", exact=True).fill("cst_nonsense")
        await dashboard.press("Sign in")
        await dashboard.shows("This key is unknown")
        await dashboard.sign_in(path="/jobs?status=failed")
        assert dashboard.page.url.endswith("/jobs?status=failed")
        assert await dashboard.page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]") == [
            *("", 0, 0)
        ]
        await dashboard.press("Sign out")
        await expect(dashboard.page.get_by_label("Key", exact=True)).to_be_visible()
        await dashboard.open("/jobs")

        assert "/sign-in?next=" in dashboard.page.url
        assert await sql(services, "SELECT count(*) FROM sessions") == [(0,)]


async def test_page_says_when_the_server_is_away_and_goes_on_when_it_is_back(
    services: Services, browser: Browser
) -> None:
    async with served(services) as port, a_page(browser, port) as dashboard:
        await dashboard.sign_in()
        await dashboard.shows("No worker is alive")
    # The page is closed with the block, so the second one stays open across the restart.
    async with a_page(browser, port) as dashboard:
        async with served(services, port=port):
            await dashboard.sign_in()
        await dashboard.shows("Cistern does not answer.")
        async with served(services, port=port):
            await expect(dashboard.page.locator("#away")).to_be_hidden(timeout=PATIENCE)


async def test_script_in_any_text_is_shown_as_text(dashboard: Dashboard, services: Services) -> None:
    volume = await a_volume(services, backend="null", name="plain")
    labels, error = json.dumps({"a": SCRIPT}), json.dumps({"code": SCRIPT, "detail": SCRIPT})
    change = "UPDATE volumes SET name = CAST(:text AS text), labels = CAST(:labels AS jsonb)"
    await sql(services, change, text=SCRIPT, labels=labels)
    await sql(
        services,
        "INSERT INTO jobs (id, kind, status, version, params, attempt, max_attempts, epoch, finished_at, error,"
        " volume_id, created_by) VALUES (:id, :kind, 'failed', 2, CAST(:labels AS jsonb), 1, 8, 0, now(),"
        " CAST(:error AS jsonb), :volume, :caller)",
        id=(job_id := uuid7()),
        kind=SCRIPT,
        caller=SCRIPT,
        labels=labels,
        error=error,
        volume=volume.id,
    )
    for path in ("/", "/volumes", f"/volumes/{volume.id}", "/jobs", f"/jobs/{job_id}", "/settings"):
        await dashboard.open(path)
        assert await dashboard.page.title() != "hacked", path
        assert await dashboard.page.locator("main script, main img").count() == 0, path
        if path != "/settings":
            await dashboard.shows("<script>document.title='hacked'</script>")


async def test_axe_finds_nothing(
    dashboard: Dashboard, services: Services, settings: Settings, running_worker: RunningWorker, browser: Browser
) -> None:
    page = dashboard.page
    volume = await a_volume(services, backend="null", name="volume-1")
    await sql(services, 'UPDATE volumes SET used = size / 2, used_at = now(), labels = \'{"team": "search"}\'')
    async with running_worker(settings):
        await dashboard.open("/volumes")
        await dashboard.press("Expand many…")
        assert await violations(page) == []
        await dashboard.fill("How much", "20")
        await dashboard.press("Expand")
        await dashboard.shows("Succeeded")
        job = page.url
        await dashboard.open(f"/volumes/{volume.id}")
        await dashboard.press("Take snapshot…")
        await dashboard.fill("Name", "before")
        await dashboard.press("Take snapshot")
        await dashboard.shows("Succeeded")
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            for path in (
                "/",
                "/volumes",
                f"/volumes/{volume.id}",
                "/jobs",
                "/schedules",
                "/settings",
                f"/jobs/{uuid4()}",
            ):
                await dashboard.open(path)
                assert await violations(page) == [], (scheme, path)
            await page.goto(job)
            assert await violations(page) == [], scheme
    async with a_page(browser, int(dashboard.address.rpartition(":")[2])) as stranger:
        for path in ("/sign-in", "/problems", "/problems/volume-busy"):
            await stranger.open(path)
            assert await violations(stranger.page) == [], path
