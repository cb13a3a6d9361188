"""Clients that follow a job or wait for its end, and leave: nothing of them is left in the API."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, cast
from uuid import UUID

import pytest

from api.main import create_app
from domain.db.database import Database
from domain.jobs import watcher as watcher_module
from domain.jobs.model import Job
from domain.jobs.transport.job_queue import JobQueue
from domain.jobs.watcher import Watcher
from tests.support.keys import BEARER
from tests.unit.fakes import FakeServices, job_row
from tests.unit.worker_fakes import fake_redis, until

Message = dict[str, Any]


class TableWatcher(Watcher):
    """The real watcher, on the jobs of the fake services."""

    def __init__(self, rows: dict[UUID, Job]) -> None:
        super().__init__(Database("postgresql+asyncpg://nobody@127.0.0.1:1/nothing"), JobQueue(fake_redis()))
        self._rows = rows

    async def _check(self, job_ids: set[UUID]) -> None:
        for job_id in job_ids & self._watched.keys():
            for watch in self._watched[job_id]:
                watch.notify(self._rows[job_id])


@pytest.fixture
def watcher(fake: FakeServices, monkeypatch: pytest.MonkeyPatch) -> TableWatcher:
    monkeypatch.setattr(watcher_module, "_POLL_SECONDS", 3600)
    watcher = TableWatcher(fake.jobs.rows)
    fake.watcher = cast("Any", watcher)
    return watcher


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class Client:
    """One request, straight to the application: it leaves when it is told to."""

    def __init__(self, app: Any, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> None:
        self._received = asyncio.Queue[Message]()
        self._received.put_nowait({"type": "http.request", "body": body})
        self.sent: list[Message] = []
        headers = {"host": "localhost", "authorization": BEARER["Authorization"]} | headers
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        self.request = asyncio.ensure_future(app(scope, self._received.get, self._send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        self._received.put_nowait({"type": "http.disconnect"})


@pytest.fixture
async def open_client(fake: FakeServices, watcher: TableWatcher) -> AsyncIterator[Callable[..., Client]]:
    """Return a function that sends a request to the application."""
    app = create_app(fake.factory())
    async with app.router.lifespan_context(app):
        yield partial(Client, app)


@pytest.mark.usefixtures("no_garbage_collection")
async def test_stream_that_is_cut_at_any_step_of_its_opening_leaves_no_watch(
    fake: FakeServices, watcher: TableWatcher, open_client: Callable[..., Client]
) -> None:
    job = fake.jobs.add(job_row())
    left = {}
    for steps in range(80):
        client = open_client(f"/api/v1/jobs/{job.id}/events")
        for _ in range(steps):
            await asyncio.sleep(0)
        client.leave()
        await client.request
        if watcher._watched:
            left[steps] = len(watcher._watched.pop(job.id))

    assert any(message["type"] == "http.response.body" for message in client.sent), "the last one was open"
    assert left == {}


@pytest.mark.usefixtures("no_garbage_collection")
async def test_five_hundred_followers_that_leave_leave_no_watch(
    fake: FakeServices, watcher: TableWatcher, open_client: Callable[..., Client]
) -> None:
    jobs = [fake.jobs.add(job_row()) for _ in range(5)]
    clients = [open_client(f"/api/v1/jobs/{jobs[number % 5].id}/events") for number in range(500)]
    for number, client in enumerate(clients):
        await asyncio.sleep(0)
        clients[number // 2].leave()
        client.leave()
    await asyncio.gather(*(client.request for client in clients))

    assert watcher._watched == {}


async def test_client_that_leaves_while_it_waits_for_the_end_leaves_no_watch(
    fake: FakeServices, watcher: TableWatcher, open_client: Callable[..., Client]
) -> None:
    client = open_client(f"/api/v1/jobs/{fake.jobs.add(job_row()).id}", prefer="wait=30")
    await until(lambda: bool(watcher._watched))
    client.leave()
    async with asyncio.timeout(5):
        await client.request

    assert watcher._watched == {}


async def test_v0_client_that_leaves_while_it_waits_leaves_no_watch(
    watcher: TableWatcher, open_client: Callable[..., Client]
) -> None:
    body = b'{"name": "v", "size": "1MiB"}'
    client = open_client("/api/v0/volumes", "POST", body, **{"content-type": "application/json"})
    await until(lambda: bool(watcher._watched))
    client.leave()
    async with asyncio.timeout(5):
        await client.request

    assert watcher._watched == {}
