"""Fixtures of route tests, and of the contract tests of the storage drivers."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from api.main import ServicesFactory, create_app
from domain.services import Services
from domain.storage.driver import StorageDriver
from tests.support.http import client_of
from tests.unit.fakes import FakeServices
from tests.unit.storage_builders import STORING_DRIVERS, open_in


@pytest.fixture
def fake() -> FakeServices:
    """Fake services of the routes."""
    return FakeServices()


class SharedApp:
    """One application for all tests, as building its routes takes 12 ms; each test opens it with its own services."""

    def __init__(self) -> None:
        self.factory: ServicesFactory = FakeServices().factory()
        self.app: FastAPI = create_app(self._open_services)

    def _open_services(self) -> AbstractAsyncContextManager[Services]:
        return self.factory()


@pytest.fixture(scope="session")
def shared_app() -> SharedApp:
    return SharedApp()


@pytest.fixture
async def client(fake: FakeServices, shared_app: SharedApp) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the routes over the fake services."""
    shared_app.factory = fake.factory()
    async with client_of(shared_app.app) as client:
        yield client


@pytest.fixture(params=STORING_DRIVERS)
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StorageDriver]:
    """Each storage driver that stores bytes."""
    driver = open_in(tmp_path, request.param)
    yield driver
    await driver.close()
