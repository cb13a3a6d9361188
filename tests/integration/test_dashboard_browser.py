"""The dashboard in a real browser: what people do there."""

import asyncio
import json
import re
from pathlib import Path
from uuid import uuid4

import pytest
from playwright.async_api import Browser, expect
from uuid_utils.compat import uuid7

from domain.access.model import Role
from domain.projects.service import NewProject
from domain.services import Services
from domain.settings import Settings
from tests.integration.conftest import RunningWorker
from tests.integration.dashboard_builders import PATIENCE, Dashboard, a_key, a_page, served
from tests.integration.dashboard_fixtures import browser as browser  # noqa: PLC0414 (a fixture)
from tests.integration.dashboard_fixtures import dashboard as dashboard  # noqa: PLC0414 (a fixture)
from tests.integration.dashboard_fixtures import settings as settings  # noqa: PLC0414 (a fixture)
from tests.integration.job_builders import a_queued_expand, a_volume, sql
from tests.integration.project_builders import a_project
from tests.support.browser import CHROMIUM, NO_CHROMIUM, violations

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]
SCRIPT = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"


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


async def test_volume_is_created_by_keyboard_alone(dashboard: Dashboard, services: Services) -> None:
    keyboard = dashboard.page.keyboard
    await dashboard.open("/volumes")

    async def press_until(name: str) -> None:
        """Go on with Tab until something is focused, as somebody does who sees where the focus is."""
        for _ in range(60):
            focused = await dashboard.page.evaluate(
                "[document.activeElement.labels?.[0]?.textContent, document.activeElement.textContent]"
            )
            if name in [(text or "").strip() for text in focused]:
                return
            await keyboard.press("Tab")
        raise AssertionError(f"{name} is never focused")

    await press_until("Create a volume…")
    await keyboard.press("Enter")
    await press_until("Name")
    await keyboard.press("Escape")
    await expect(dashboard.page.locator("dialog[open]")).to_have_count(0)
    await press_until("Create a volume…")
    await keyboard.press("Enter")
    await press_until("Name")
    await keyboard.type("typed")
    await press_until("Size")
    await keyboard.type("16MiB")
    await keyboard.press("Enter")
    await dashboard.page.wait_for_url("**/jobs/*")
    await press_until("Cancel")
    await keyboard.press("Enter")
    await press_until("Cancel it")
    await keyboard.press("Enter")
    await dashboard.shows("Cancelled")

    assert await sql(services, "SELECT volume_name, status FROM jobs") == [("typed", "cancelled")]


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


async def test_all_that_match_are_cancelled_after_a_question_with_their_number(
    dashboard: Dashboard, services: Services
) -> None:
    for _ in range(3):
        await a_queued_expand(services)
    await dashboard.open("/jobs?kind=volume.expand&hours=24")
    await dashboard.press("Retry all…")
    await dashboard.shows("No job that matches can be retried.")
    await dashboard.press("Cancel all…")
    await dashboard.shows("Cancel 3 jobs?")
    await dashboard.press("Let them run")
    assert await sql(services, "SELECT DISTINCT status FROM jobs") == [("queued",)]
    await dashboard.press("Cancel all…")
    await dashboard.press("Cancel them")
    await dashboard.shows("3 jobs were cancelled.")

    assert await sql(services, "SELECT DISTINCT status FROM jobs") == [("cancelled",)]


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
    await dashboard.page.get_by_label("Grow", exact=True).select_option("by the policy of each volume")
    await dashboard.press("Save")
    await dashboard.shows('"policy": "autogrow"')
    await dashboard.press("Edit…")
    await dashboard.page.get_by_label("Grow", exact=True).select_option("by per cent")
    await dashboard.fill("How much", "5")
    await dashboard.fill("Only volumes with these labels", "team: search")
    await dashboard.press("Save")
    await dashboard.shows('"percent": 5')
    await dashboard.shows('"team": "search"')
    await dashboard.press("Pause the schedule")
    await dashboard.shows("It is paused.")
    await dashboard.press("Run now")
    await dashboard.press("Run it")
    await page.wait_for_url("**/jobs/*")

    assert await sql(services, "SELECT cron, enabled, params ->> 'percent' FROM schedules") == [
        ("30 3 * * 1", False, "5.0")
    ]


async def test_schedule_of_snapshots_has_fields_of_its_own(dashboard: Dashboard, services: Services) -> None:
    await dashboard.open("/schedules")
    await dashboard.press("Create a schedule…")
    await dashboard.fill("Name", "weekly")
    await dashboard.page.get_by_label("Action").select_option("bulk.snapshot")
    await dashboard.fill("How many to keep per volume", "4")
    await dashboard.page.get_by_label("Fail if no volume is selected").check()
    await dashboard.press("Create")
    await dashboard.page.wait_for_url(re.compile("/schedules/[0-9a-f-]{36}"))

    ((params,),) = await sql(services, "SELECT params FROM schedules")
    assert params == {"name": "nightly", "keep_last": 4, "require_any": True, "max_concurrent": 10}


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


async def test_page_stays_in_its_project_when_another_tab_chooses_another_one(
    dashboard: Dashboard, services: Services
) -> None:
    await services.projects.create(NewProject("search", {}))
    await dashboard.open("/volumes")
    other = Dashboard(await dashboard.page.context.new_page(), dashboard.address)
    await other.open("/settings")
    await other.page.locator("#projects").get_by_role("row", name="search").get_by_role("button", name="Show").click()
    await expect(other.page.get_by_title("The project that is shown")).to_have_text("search")

    await dashboard.press("Create a volume…")
    await dashboard.fill("Name", "of-the-first-tab")
    await dashboard.fill("Size", "16MiB")
    created = dashboard.page.expect_response("**/api/v1/volumes")
    async with created as response:
        await dashboard.press("Create")
    assert (await response.value).status == 202

    projects = await sql(services, "SELECT name FROM projects WHERE id IN (SELECT project_id FROM volumes)")
    assert projects == [("default",)]


async def test_page_of_a_project_that_another_tab_has_left_for_good_says_so(
    dashboard: Dashboard, services: Services
) -> None:
    await a_volume(services, name="seen-before")
    await dashboard.open("/volumes")
    await dashboard.press("Pause updates")  # between the two keys it would be sent to sign in
    search = await a_project(services, "search")
    other = Dashboard(await dashboard.page.context.new_page(), dashboard.address)
    await other.open("/")
    await other.press("Sign out")
    await other.sign_in(search.key)
    await dashboard.press("Resume updates")

    await dashboard.shows("does not see the project default")
    await dashboard.shows("seen-before")


async def test_system_key_chooses_a_project_and_sets_its_limits(dashboard: Dashboard, services: Services) -> None:
    page = dashboard.page
    await dashboard.open("/settings")
    await dashboard.press("Create a project…")
    await dashboard.fill("Name", "search")
    await dashboard.fill("Volumes", "7")
    await dashboard.press("Create")
    row = page.locator("#projects").get_by_role("row", name="search")
    await row.get_by_role("button", name="Show").click()
    await page.wait_for_url("**/")
    await dashboard.open("/settings")
    await expect(page.get_by_role("heading", name="Project search")).to_be_visible()
    await dashboard.press("Change limits…")
    await dashboard.fill("Bytes", "10GiB")
    await dashboard.fill("Volumes", "")
    await dashboard.press("Save")
    await expect(page.get_by_role("row", name="bytes")).to_contain_text("10 GiB")

    assert await sql(services, "SELECT max_volumes, max_bytes FROM projects WHERE name = 'search'") == [
        (None, 10 * 2**30)
    ]


async def test_webhook_is_created_paused_and_deleted(dashboard: Dashboard, services: Services) -> None:
    page = dashboard.page
    await dashboard.open("/settings")
    await dashboard.press("Create a webhook…")
    await dashboard.fill("URL", "http://elsewhere.example/")
    await dashboard.press("Create")
    await dashboard.shows("CISTERN_WEBHOOK_HOSTS does not have the host")
    await dashboard.fill("URL", "http://hooks.example/")
    await page.locator("dialog[open]").get_by_label("limit.reached").uncheck()
    await dashboard.press("Create")
    await expect(page.locator("#new-webhook-text")).to_have_text(re.compile("^whsec_"))
    await dashboard.press("Done")
    row = page.locator("#webhooks").get_by_role("row", name="http://hooks.example/")
    await expect(row).not_to_contain_text("limit.reached")
    await row.get_by_role("button", name="Pause").click()
    await expect(row).to_contain_text("paused")
    assert await sql(services, "SELECT cardinality(events), enabled FROM webhooks") == [(5, False)]
    await row.get_by_role("button", name="Delete").click()
    await dashboard.press("Delete it")
    await dashboard.shows("There is no webhook: nothing is sent anywhere when a job fails.")


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


async def test_history_of_a_volume_is_drawn_and_described(dashboard: Dashboard, services: Services) -> None:
    volume = await a_volume(services, backend="null")
    await dashboard.open(f"/volumes/{volume.id}")
    await dashboard.shows("Nothing has been recorded before.")
    assert await dashboard.page.locator(".chart canvas").count() == 0
    await services.volume_history.take_samples()
    await sql(services, "UPDATE volume_samples SET at = at - interval '5 hours'")
    await sql(services, "UPDATE volumes SET size = 2 * size, used = size, used_at = now()")

    await dashboard.shows(" now, of which 1 MiB are used.")
    await expect(dashboard.page.locator(".chart canvas")).to_be_visible()


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
        await dashboard.open("/schedules")
        await dashboard.press("Create a schedule…")
        assert await violations(page) == []
        await dashboard.fill("Name", "weekly")
        await dashboard.press("Create")
        await page.wait_for_url(re.compile("/schedules/[0-9a-f-]{36}"))
        schedule = page.url.removeprefix(dashboard.address)
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            for path in (
                "/",
                "/volumes",
                f"/volumes/{volume.id}",
                "/jobs",
                "/schedules",
                schedule,
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


async def test_volume_is_detached_by_keyboard_and_taken_from_its_node_after_a_question(
    dashboard: Dashboard, services: Services
) -> None:
    volume = await a_volume(services, backend="null", name="data")
    columns = "id, project_id, volume_id, node, holder, mode, state, generation"
    values = "gen_random_uuid(), :project, :volume, 'web-1', 'db', 'rw', 'attached', 2"
    names = {"project": volume.project_id, "volume": volume.id}
    await sql(services, f"INSERT INTO attachments ({columns}) VALUES ({values})", **names)
    await dashboard.open(f"/volumes/{volume.id}")
    for scheme in ("light", "dark"):
        await dashboard.page.emulate_media(color_scheme=scheme)
        assert await violations(dashboard.page) == [], scheme
    await dashboard.press("Take from node…")
    await dashboard.shows("Take data from web-1?")
    assert await violations(dashboard.page) == []
    await dashboard.press("Keep it")
    assert await sql(services, "SELECT id FROM jobs") == []

    await dashboard.page.get_by_role("button", name="Detach from db").focus()
    await dashboard.page.keyboard.press("Enter")
    await dashboard.page.wait_for_url(re.compile("/jobs/[0-9a-f-]{36}"))
    [(job_id,)] = await sql(services, "SELECT id FROM jobs WHERE kind = 'volume.detach'")
    await services.jobs.cancel(job_id)
    await dashboard.open(f"/volumes/{volume.id}")
    await dashboard.press("Take from node…")
    await dashboard.press("Take it")
    await dashboard.page.wait_for_url(re.compile("/jobs/[0-9a-f-]{36}"))
    assert [row.kind for row in await sql(services, "SELECT kind FROM jobs ORDER BY id")][1:] == ["volume.isolate"]
