"""Liveness, readiness and the list of backends."""

import asyncio

import httpx
import pytest

from api import health
from api.v1 import backends
from domain.jobs.transport.job_queue import QueueRefusesWrites
from domain.storage.errors import AccessDenied
from tests.unit.fakes import FakeServices


async def test_liveness_does_not_depend_on_servers(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.database.up = fake.queue.up = False
    response = await client.get("/healthz")

    assert (response.status_code, response.json()) == (200, {"status": "alive"})


STATS = {"queue_depth": 2, "oldest_due_seconds": 1.5, "rescued": 1, "retried": 3, "lost_messages": 4}


async def test_process_is_ready_if_both_servers_respond(client: httpx.AsyncClient) -> None:
    response = await client.get("/readyz")

    assert response.status_code == 200
    assert response.json() == {"status": "ready", "postgresql": "ok", "redis": "ok", "stats": STATS}


async def test_process_is_ready_without_stats(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.stats.stats = None
    response = await client.get("/readyz")

    assert (response.status_code, response.json()["status"], response.json()["stats"]) == (200, "ready", None)


async def test_process_is_degraded_without_redis(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.queue.up = False
    response = await client.get("/readyz")

    assert response.status_code == 200
    assert response.json() == {"status": "degraded", "postgresql": "ok", "redis": "unavailable", "stats": STATS}


async def test_process_is_degraded_if_redis_refuses_writes(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise QueueRefusesWrites

    monkeypatch.setattr(fake.queue, "ping", fail)
    response = await client.get("/readyz")

    assert (response.json()["status"], response.json()["redis"]) == ("degraded", "refuses-writes")


async def test_process_is_not_ready_without_postgresql(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.database.up = False
    response = await client.get("/readyz")

    assert (response.status_code, response.json()["code"]) == (503, "database-unavailable")


async def hang() -> None:
    await asyncio.sleep(60)


async def test_process_is_not_ready_if_postgresql_hangs(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_TIMEOUT_SECONDS", 0.01)
    monkeypatch.setattr(fake.database, "ping", hang)

    assert (await client.get("/readyz")).status_code == 503


async def test_backends_have_drivers_and_capacity(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v1/backends")).json() == {
        "items": [
            {"name": "memory", "driver": "memory", "total": 10 * 2**30, "used": 0, "error": None},
            {"name": "null", "driver": "null", "total": None, "used": 0, "error": None},
        ]
    }


async def test_failing_backend_does_not_hide_the_others(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise AccessDenied

    monkeypatch.setattr(fake.backends.get("memory"), "capacity", fail)
    response = await client.get("/api/v1/backends")

    broken, intact = response.json()["items"]
    assert response.status_code == 200
    assert (broken["used"], broken["error"]["code"]) == (None, "storage-denied")
    assert (intact["used"], intact["error"]) == (0, None)


async def test_hanging_backend_does_not_delay_the_others(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_TIMEOUT_SECONDS", 0.01)
    monkeypatch.setattr(fake.backends.get("memory"), "capacity", hang)

    broken, intact = (await client.get("/api/v1/backends")).json()["items"]
    assert (broken["error"]["code"], intact["error"]) == ("storage-unavailable", None)
