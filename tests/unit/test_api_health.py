"""Liveness, readiness and the list of backends."""

import asyncio
from uuid import UUID

import httpx
import pytest

from api import health
from domain.jobs.transport.job_queue import QueueRefusesWrites
from tests.unit.fakes import FakeServices


async def test_liveness_does_not_depend_on_servers(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.database.up = fake.queue.up = False
    response = await client.get("/healthz")

    assert (response.status_code, response.json()) == (200, {"status": "alive"})


SERVED = {"memory": "ok", "null": "ok"}
STATS = {"queue_depth": 2, "oldest_due_seconds": 1.5, "rescued": 1, "retried": 3, "lost_messages": 4}


async def test_process_is_ready_if_both_servers_respond(client: httpx.AsyncClient) -> None:
    response = await client.get("/readyz")

    assert response.status_code == 200
    servers = {"postgresql": "ok", "redis": "ok", "workers": "ok"}
    assert response.json() == {"status": "ready", **servers, "backends": SERVED, "stats": STATS}


async def test_process_is_ready_without_stats(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.stats.stats = None
    response = await client.get("/readyz")

    assert (response.status_code, response.json()["status"], response.json()["stats"]) == (200, "ready", None)


async def test_process_without_workers_is_ready_and_says_so(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.workers.alive = 0
    response = await client.get("/readyz")

    assert (response.status_code, response.json()["status"], response.json()["workers"]) == (200, "ready", "none-alive")


async def test_process_is_degraded_without_redis(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.queue.up = False
    response = await client.get("/readyz")

    assert response.status_code == 200
    servers = {"postgresql": "ok", "redis": "unavailable", "workers": "ok"}
    assert response.json() == {"status": "degraded", **servers, "backends": SERVED, "stats": STATS}


async def test_process_is_degraded_if_redis_refuses_writes(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_backends: object) -> None:
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


async def test_process_is_degraded_while_no_worker_serves_a_backend(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    fake.directory.fail("memory", "it is not mounted")
    response = await client.get("/readyz")

    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert response.json()["backends"] == {"memory": "worker-1: it is not mounted", "null": "ok"}


async def test_backends_have_drivers_capacity_and_workers(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.directory.fail("null", "it is not mounted")
    memory, null = (await client.get("/api/v1/backends")).json()["items"]

    worker = {"worker_id": str(UUID(int=7)), "host": "worker-1", "since": "2026-01-31T12:00:00Z", "problem": None}
    assert memory == {
        "name": "memory",
        "driver": "memory",
        "total": 10 * 2**30,
        "used": 2**20,
        "free": 10 * 2**30 - 2**20,
        "promised": None,
        "measured_at": worker["since"],
        "filesystems": [],
        "served": True,
        "problem": None,
        "workers": [worker],
    }
    assert (null["served"], null["problem"]) == (False, "worker-1: it is not mounted")
    assert null["workers"] == [worker | {"problem": "it is not mounted"}]
