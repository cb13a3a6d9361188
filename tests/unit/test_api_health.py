"""Health and backends: the truth about what the process stands on."""

import asyncio

import httpx
import pytest

from api import health
from api.v1 import backends
from domain.jobs.transport.job_queue import QueueRefusesWrites
from domain.storage.errors import AccessDenied
from tests.unit.fakes import FakeServices


async def test_a_process_is_alive_whatever_else_is_down(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.database.up = fake.queue.up = False
    answer = await client.get("/healthz")

    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


SIGNALS = {"queue_depth": 2, "oldest_due_seconds": 1.5, "rescued": 1, "retried": 3, "lost_messages": 4}


async def test_a_process_is_ready_when_both_servers_answer(client: httpx.AsyncClient) -> None:
    answer = await client.get("/readyz")

    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "postgresql": "ok", "redis": "ok", "signals": SIGNALS}


async def test_a_process_whose_signals_cannot_be_had_is_ready_all_the_same(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    fake.signals.seen = None
    answer = await client.get("/readyz")

    assert (answer.status_code, answer.json()["status"], answer.json()["signals"]) == (200, "ready", None)


async def test_without_redis_it_is_degraded_but_goes_on_accepting(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    fake.queue.up = False
    answer = await client.get("/readyz")

    assert answer.status_code == 200
    assert answer.json() == {"status": "degraded", "postgresql": "ok", "redis": "unavailable", "signals": SIGNALS}


async def test_with_a_redis_that_refuses_writes_it_is_degraded(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse() -> None:
        raise QueueRefusesWrites

    monkeypatch.setattr(fake.queue, "ping", refuse)
    answer = await client.get("/readyz")

    assert (answer.json()["status"], answer.json()["redis"]) == ("degraded", "refuses-writes")


async def test_without_postgresql_it_is_not_ready(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.database.up = False
    answer = await client.get("/readyz")

    assert (answer.status_code, answer.json()["code"]) == (503, "database-unavailable")


async def hang() -> None:
    await asyncio.sleep(60)


async def test_a_postgresql_that_hangs_is_as_good_as_none(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_TIMEOUT_SECONDS", 0.01)
    monkeypatch.setattr(fake.database, "ping", hang)

    assert (await client.get("/readyz")).status_code == 503


async def test_backends_show_their_drivers_and_how_full_they_are(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v1/backends")).json() == {
        "items": [
            {"name": "memory", "driver": "memory", "total": 10 * 2**30, "used": 0, "error": None},
            {"name": "null", "driver": "null", "total": None, "used": 0, "error": None},
        ]
    }


async def test_a_backend_that_fails_does_not_hide_the_others(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse() -> None:
        raise AccessDenied

    monkeypatch.setattr(fake.backends.get("memory"), "capacity", refuse)
    answer = await client.get("/api/v1/backends")

    broken, whole = answer.json()["items"]
    assert answer.status_code == 200
    assert (broken["used"], broken["error"]["code"]) == (None, "storage-denied")
    assert (whole["used"], whole["error"]) == (0, None)


async def test_a_backend_that_hangs_does_not_hold_the_others(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_TIMEOUT_SECONDS", 0.01)
    monkeypatch.setattr(fake.backends.get("memory"), "capacity", hang)

    broken, whole = (await client.get("/api/v1/backends")).json()["items"]
    assert (broken["error"]["code"], whole["error"]) == ("storage-unavailable", None)
