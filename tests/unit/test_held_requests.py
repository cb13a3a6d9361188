"""Requests that wait for a job or follow it: their number is limited, and one that ends makes room."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI

from api import held_requests
from api.held_requests import HeldRequests
from api.main import create_app
from api.v1 import jobs
from domain.access.model import Role
from domain.db.base import DEFAULT_PROJECT
from domain.errors import TooManyHeldRequests
from tests.support.http import client_of
from tests.unit.fake_keys import bearer
from tests.unit.fakes import FakeServices, job_row

V0, V1 = "/api/v0/volumes", "/api/v1/volumes"
VOLUME = {"name": "a", "size": "1MiB"}


@pytest.fixture
def app(fake: FakeServices) -> FastAPI:
    return create_app(fake.factory())


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@pytest.fixture
def fill(app: FastAPI) -> Callable[[int], ExitStack]:
    """Return a function that holds requests of unknown callers until its result is closed."""

    def hold(count: int) -> ExitStack:
        stack = ExitStack()
        for _ in range(count):
            stack.enter_context(app.state.held_requests.hold(None))
        return stack

    return hold


#: Two keys, and two projects.
ONE, ANOTHER = UUID(int=1000), UUID(int=1001)
PROJECT, ANOTHER_PROJECT = UUID(int=1002), UUID(int=1003)


def test_five_hundred_requests_are_held_in_all() -> None:
    held = HeldRequests()
    with ExitStack() as stack:
        for number in range(500):
            stack.enter_context(held.hold(UUID(int=number // 100)))
        for caller in (ANOTHER, None):
            with pytest.raises(TooManyHeldRequests), held.hold(caller):
                pass

    with held.hold(ANOTHER):
        pass


def test_four_hundred_requests_of_one_project_are_held() -> None:
    """Whoever makes many keys in a project leaves room for the others, and for system keys."""
    held = HeldRequests()
    with ExitStack() as stack:
        for number in range(400):
            stack.enter_context(held.hold(UUID(int=number), PROJECT))
        with pytest.raises(TooManyHeldRequests, match="400 requests of your project"), held.hold(ONE, PROJECT):
            pass
        for _ in range(50):
            stack.enter_context(held.hold(ONE, ANOTHER_PROJECT))
            stack.enter_context(held.hold(ANOTHER))

    with held.hold(ONE, PROJECT):
        pass
    assert not held._held


def test_hundred_requests_of_one_caller_are_held() -> None:
    held = HeldRequests()
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(held.hold(ONE))
        with pytest.raises(TooManyHeldRequests, match="100 requests of yours"), held.hold(ONE):
            pass
        with held.hold(ANOTHER), held.hold(None):
            pass

    with held.hold(ONE):
        pass
    assert not held._held


async def test_requests_that_would_be_held_are_refused_and_accept_nothing(
    fake: FakeServices, client: httpx.AsyncClient, fill: Callable[[int], ExitStack]
) -> None:
    job = fake.jobs.add(job_row())
    prefer = {"Prefer": "wait=10"}
    with fill(500):
        refused = [
            await client.get(f"/api/v1/jobs/{job.id}/events"),
            await client.get(f"/api/v1/jobs/{uuid4()}/events"),  # refused before the job is looked up
            await client.get(f"/api/v1/jobs/{job.id}", headers=prefer),
            await client.post(V1, json=VOLUME, headers=prefer),
            await client.post(V0, json=VOLUME),
        ]

        for response in refused:
            assert (response.status_code, response.json()["code"]) == (429, "too-many-held-requests")
            assert response.headers["Retry-After"] == "1"
        assert not fake.volumes.rows
        assert (await client.post(V1, json=VOLUME)).status_code == 202, "it does not wait"
        assert (await client.get(f"/api/v1/jobs/{job.id}")).status_code == 200


async def test_held_requests_count_for_the_project_of_their_key(
    fake: FakeServices, client: httpx.AsyncClient, app: FastAPI
) -> None:
    job = fake.jobs.add(job_row())
    with ExitStack() as stack:
        for number in range(400):
            stack.enter_context(app.state.held_requests.hold(UUID(int=number), DEFAULT_PROJECT))
        statuses = [
            (await client.get(f"/api/v1/jobs/{job.id}", headers={"Prefer": "wait=1"} | bearer(role))).status_code
            for role in (Role.VIEWER, Role.OWNER)
        ]
        system = await client.get(f"/api/v1/jobs/{job.id}/events")

    assert (statuses, system.status_code) == ([429, 429], 200)


async def test_requests_that_were_held_make_room_for_others(
    fake: FakeServices, client: httpx.AsyncClient, fill: Callable[[int], ExitStack]
) -> None:
    with fill(499):
        for number in range(3):
            job = fake.jobs.add(job_row())
            statuses = [
                (await client.get(f"/api/v1/jobs/{job.id}/events")).status_code,
                (await client.get(f"/api/v1/jobs/{job.id}", headers={"Prefer": "wait=10"})).status_code,
                (await client.post(V0, json=VOLUME | {"name": f"volume-{number}"})).status_code,
            ]
            assert statuses == [200, 200, 201]


async def test_stream_of_events_ends_after_an_hour(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow, ends = fake.watcher.follow, list[Any]()

    def note_and_follow(job_id: Any, version: Any, *, end: Any) -> Any:
        ends.append(end)
        return follow(job_id, version, end=end)

    fake.watcher.follow = cast("Any", note_and_follow)  # type: ignore[method-assign]
    await client.get(f"/api/v1/jobs/{fake.jobs.add(job_row()).id}/events")
    assert held_requests.MAX_STREAM_SECONDS == 3600
    monkeypatch.setattr(jobs, "MAX_STREAM_SECONDS", 0.01)

    await asyncio.wait_for(ends[0](), 10)
