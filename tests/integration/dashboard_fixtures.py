"""Fixtures of tests that use the dashboard in a browser."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser

from domain.services import Services
from domain.settings import Settings
from tests.integration.dashboard_builders import Dashboard, a_page, served
from tests.support.browser import a_browser


@pytest.fixture
def settings(bulk_settings: Settings) -> Settings:
    """Storage that can be held up, so that jobs can be watched, and a host for webhooks.

    The lease is the default one: a browser keeps a machine busy, and a worker that is late is not what is tested.
    """
    lease = Settings.model_fields["lease_seconds"].default
    return bulk_settings.model_copy(update={"webhook_hosts": ("hooks.example",), "lease_seconds": lease})


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
