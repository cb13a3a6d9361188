"""Fixtures of the integration tests, besides the servers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

import httpx
import pytest
import uvloop
from fastapi import FastAPI

from api.main import create_app
from domain.services import Services
from domain.settings import Settings
from tests.support.http import client_of
from tests.support.worker import running_worker as _running_worker
from worker.runner import Runner

RunningWorker = Callable[[Settings], AbstractAsyncContextManager[Runner]]


@pytest.fixture
def running_worker() -> RunningWorker:
    """A context manager that runs a worker with the given settings."""
    return _running_worker


@pytest.fixture
def bulk_settings(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a null backend and a file backend, both with a journal, injected faults and a gate."""
    options = f"journal={tmp_path / 'journal'}&fail=@{tmp_path / 'faults'}&gate={tmp_path / 'gate'}"
    backends = {"null": f"faulty+null:?delay_ms=20&{options}", "files": f"faulty+file:{tmp_path}/volumes?{options}"}
    return settings.model_copy(update={"backends": backends, "max_jobs": 20, "busy_seconds": 30})


@pytest.fixture
def app(services: Services) -> FastAPI:
    """The API application, with the services of the test."""
    return create_app(lambda: nullcontext(services))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the API application."""
    async with client_of(app) as client:
        yield client


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests on the event loop of production."""
    return {"uvloop": uvloop.new_event_loop}
