"""Pages in a real browser go on: after requests that are late, fail or are never answered, and while nobody answers."""

import asyncio

import pytest
from playwright.async_api import Browser, Page, Request, Response, Route, expect

from domain.services import Services
from tests.integration.dashboard_builders import PATIENCE, Dashboard, a_page, served
from tests.integration.dashboard_fixtures import browser as browser  # noqa: PLC0414 (a fixture)
from tests.integration.dashboard_fixtures import dashboard as dashboard  # noqa: PLC0414 (a fixture)
from tests.integration.dashboard_fixtures import settings as settings  # noqa: PLC0414 (a fixture)
from tests.integration.job_builders import a_queued_expand, a_volume, sql
from tests.support.browser import CHROMIUM, NO_CHROMIUM

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]


async def never_answer(_: Route) -> None:
    """Leave a request waiting."""


def end_of_following(page: Page) -> asyncio.Event:
    """Return what is set once the page has been told that its job has ended, and no longer follows its events."""
    over = asyncio.Event()

    def note(request: Request) -> None:
        if request.url.endswith("/events"):
            over.set()

    page.on("requestfinished", note)
    page.on("requestfailed", note)
    return over


def is_asked_by_script(response: Response) -> bool:
    """Return whether this is the page again, as a script asks for it."""
    request = response.request
    return request.headers.get("x-cistern-session") == "1" and "/api/" not in request.url


async def happened(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE / 1000):
        await event.wait()


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


async def test_page_goes_on_after_a_request_that_was_never_answered(dashboard: Dashboard, services: Services) -> None:
    page, volume = dashboard.page, await a_volume(services, backend="null")
    await dashboard.open(f"/volumes/{volume.id}")
    async with page.expect_request(f"**/volumes/{volume.id}"):
        await page.route(f"**/volumes/{volume.id}", never_answer, times=1)
    await sql(services, """UPDATE volumes SET labels = '{"team": "late"}'""")

    await dashboard.shows("team: late")


async def test_page_of_a_job_shows_its_end_when_an_answer_from_before_it_comes_after_it(
    dashboard: Dashboard, services: Services
) -> None:
    page, job = dashboard.page, await a_queued_expand(services)
    over, asked = end_of_following(page), asyncio.Event()

    async def answer_late(route: Route) -> None:
        """Keep the first answer that a script asks for until the page has been told of the end."""
        if route.request.is_navigation_request() or asked.is_set():
            await route.continue_()
            return
        asked.set()
        answer = await route.fetch()
        await services.jobs.cancel(job.id)
        await over.wait()
        await route.fulfill(response=answer)

    await page.route(f"**/jobs/{job.id}", answer_late)
    await dashboard.open(f"/jobs/{job.id}")
    await happened(over)

    await dashboard.shows("Cancelled")


async def test_page_of_a_job_shows_its_end_when_the_server_is_away_just_then(
    dashboard: Dashboard, services: Services
) -> None:
    page, job = dashboard.page, await a_queued_expand(services)
    over = end_of_following(page)
    async with page.expect_response(is_asked_by_script):  # then nothing is planned but what the end makes it do
        await dashboard.open(f"/jobs/{job.id}")
    await page.route(f"**/jobs/{job.id}", lambda route: route.abort())
    await services.jobs.cancel(job.id)
    await happened(over)
    await dashboard.shows("Cistern does not answer.")
    await page.unroute(f"**/jobs/{job.id}")

    await dashboard.shows("Cancelled")
    await expect(page.locator("#away")).to_be_hidden()


async def test_page_of_a_job_shows_its_end_when_its_events_never_come(dashboard: Dashboard, services: Services) -> None:
    page, job = dashboard.page, await a_queued_expand(services)
    await page.route("**/events", never_answer)
    async with page.expect_request("**/events"):
        await dashboard.open(f"/jobs/{job.id}")
    await services.jobs.cancel(job.id)

    await dashboard.shows("Cancelled")
