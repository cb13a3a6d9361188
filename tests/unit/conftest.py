"""Fixtures of route tests, and of the contract tests of the storage drivers."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from api.main import create_app
from domain.storage.driver import StorageDriver
from tests.support.http import client_of
from tests.unit.fakes import FakeServices
from tests.unit.storage_builders import STORING_DRIVERS, open_in


@pytest.fixture
def fake() -> FakeServices:
    """Fake services of the routes."""
    return FakeServices()


@pytest.fixture
async def client(fake: FakeServices) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the routes over the fake services."""
    async with client_of(create_app(fake.factory())) as client:
        yield client


@pytest.fixture(params=STORING_DRIVERS)
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StorageDriver]:
    """Each storage driver that stores bytes."""
    driver = open_in(tmp_path, request.param)
    yield driver
    await driver.close()
