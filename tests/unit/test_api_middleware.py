"""Middleware: request ids, unexpected exceptions, and errors at startup."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import httpx
import pytest
import structlog
import uvicorn
from starlette.responses import Response
from uvicorn.lifespan.on import LifespanOn

from api.main import ServicesFactory, create_app
from api.middleware import Gate
from api.v1 import hot_routes
from domain.errors import CisternError, DatabaseUnavailable
from domain.services import Services
from tests.support.forked import Forked
from tests.unit.fake_volumes import FakeVolumes
from tests.unit.fakes import FakeServices, volume_row


@pytest.mark.parametrize("valid", ["a", "0f8fad5b-d9cb-469f-a165-70867728950e", "a" * 128])
async def test_valid_request_id_is_kept(client: httpx.AsyncClient, valid: str) -> None:
    response = await client.get("/nowhere", headers={"X-Request-ID": valid})

    assert (response.headers["x-request-id"], response.json()["request_id"]) == (valid, valid)


@pytest.mark.parametrize("invalid", ["", "a b", "a" * 129, "a;b", '"', "<script>"])
async def test_invalid_request_id_is_replaced(client: httpx.AsyncClient, invalid: str) -> None:
    response = await client.get("/nowhere", headers={"X-Request-ID": invalid})

    assert response.headers["x-request-id"] != invalid
    assert response.headers["x-request-id"] == response.json()["request_id"]


async def test_request_ids_are_unique(client: httpx.AsyncClient) -> None:
    ids = {(await client.get("/healthz")).headers["x-request-id"] for _ in range(3)}

    assert len(ids) == 3


async def test_no_route_is_reached_without_passing_the_gate(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate refuses every path here, as a key that is missing will: hot routes, FastAPI's, and what is no route."""

    async def refuse(self: Gate, scope: Any, receive: Any, send: Any) -> None:
        await Response(status_code=418)(scope, receive, send)

    monkeypatch.setattr(Gate, "_request", refuse)
    app: Any = client._transport.app  # type: ignore[attr-defined]
    routes = [("GET", path) for path in ("/nowhere", "/docs", "/openapi.json")]
    routes += [(method, path) for path, methods in app.openapi()["paths"].items() for method in methods]
    routes += [
        (method, path.pattern.replace(hot_routes._ID, str(uuid4()))) for method, path, _ in hot_routes.HOT_ROUTES
    ]

    statuses = {(await client.request(method, path)).status_code for method, path in routes}

    assert len(routes) > 45
    assert statuses == {418}


async def raise_secret(*_: object) -> None:
    raise RuntimeError("the password is hunter2")


async def test_unexpected_exception_is_a_500_without_details_and_is_logged(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake.volumes, "get", raise_secret)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        response = await client.get(f"/api/v1/volumes/{volume_row().id}", headers={"X-Request-ID": "find-me"})

    problem = response.json()
    assert (response.status_code, response.headers["content-type"]) == (500, "application/problem+json")
    assert (problem["code"], problem["request_id"], response.headers["x-request-id"]) == (
        "internal",
        "find-me",
        "find-me",
    )
    assert "hunter2" not in response.text
    assert [(log["event"], log["request_id"]) for log in logs] == [("request.failed", "find-me")]


async def test_domain_error_without_a_problem_type_is_a_500(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise CisternError("the password is hunter2")

    monkeypatch.setattr(fake.volumes, "get", fail)
    response = await client.get(f"/api/v1/volumes/{volume_row().id}")

    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "hunter2" not in response.text


async def test_unavailable_database_is_a_503_with_retry_after(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(*_: object, **__: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(fake.volumes, "request_create", unavailable)
    response = await client.post("/api/v1/volumes", json={"name": "a", "size": 1})

    assert (response.status_code, response.json()["code"]) == (503, "database-unavailable")
    assert response.headers["retry-after"] == "1"


MAYBE = "PostgreSQL is not responding. The request may have been accepted"
AGAIN = f"{MAYBE}: repeat it with the same Idempotency-Key."


@pytest.mark.parametrize(
    ("request_line", "headers", "detail"),
    [
        ("GET", {}, "PostgreSQL is not responding."),
        ("GET", {"Idempotency-Key": "one"}, "PostgreSQL is not responding."),
        ("POST /expand", {}, f"{MAYBE}."),
        ("POST /expand", {"Prefer": "wait=1"}, f"{MAYBE}."),  # not by the hot route
        ("POST /expand", {"Idempotency-Key": "one"}, AGAIN),
        ("DELETE", {}, f"{MAYBE}."),
        ("DELETE", {"Idempotency-Key": "one"}, AGAIN),
        ("PATCH", {}, f"{MAYBE}."),
    ],
)
async def test_unavailable_database_leaves_open_whether_a_change_was_accepted(
    client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    request_line: str,
    headers: dict[str, str],
    detail: str,
) -> None:
    async def unavailable(*_: object, **__: object) -> None:
        raise DatabaseUnavailable

    for name in ("get", "request_expand", "request_delete", "change"):
        monkeypatch.setattr(FakeVolumes, name, unavailable)
    method, _, path = request_line.partition(" ")
    body = {"POST": {"by": 1}, "PATCH": {"name": "a"}}.get(method)
    response = await client.request(method, f"/api/v1/volumes/{uuid4()}{path}", json=body, headers=headers)

    assert (response.status_code, response.json()["detail"]) == (503, detail)


async def start(services_factory: ServicesFactory) -> list[dict[str, Any]]:
    """Start an app as a server does, and return the messages that it sends."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    await create_app(services_factory)({"type": "lifespan", "state": {}}, receive, send)
    return sent


class Failing(AbstractAsyncContextManager[Services]):
    """Services that cannot be opened."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def __aenter__(self) -> NoReturn:
        raise self.error

    async def __aexit__(self, *_: object) -> None:
        raise AssertionError("never opened")


async def test_unavailable_database_at_startup_is_reported_in_one_line() -> None:
    assert await start(lambda: Failing(DatabaseUnavailable())) == [
        {
            "type": "lifespan.startup.failed",
            "message": "Cistern cannot start: PostgreSQL is not responding.",
        }
    ]


@pytest.mark.parametrize(("configured", "used"), [(5, 75), (120, 120)])
async def test_server_keeps_idle_connections_however_it_was_started(
    fake: FakeServices, configured: int, used: int
) -> None:
    @asynccontextmanager
    async def services() -> AsyncIterator[Any]:
        yield fake

    config = uvicorn.Config(create_app(services), timeout_keep_alive=configured, lifespan="on")
    config.load()
    lifespan = LifespanOn(config)
    await lifespan.startup()
    await lifespan.shutdown()

    assert (lifespan.should_exit, config.timeout_keep_alive) == (False, used)


async def test_unexpected_exception_at_startup_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        await start(lambda: Failing(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("setting", "variable"),
    [
        ({}, "CISTERN_DATABASE_URL"),
        ({"CISTERN_MAX_JOBS": "many"}, "CISTERN_MAX_JOBS"),
        ({"CISTERN_BACKENDS": "{"}, "CISTERN_BACKENDS"),
        ({"CISTERN_DATABASE_URL": "postgresql+asyncpg://u@h/d"}, "CISTERN_REDIS_URL"),
    ],
    ids=str,
)
def test_invalid_setting_ends_the_server_with_one_line(tmp_path: Path, setting: dict[str, str], variable: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CISTERN_")}
    log = tmp_path / "log"
    command = ["uvicorn", "--log-level", "warning", "--port", "0", "api.main:app"]
    ended = Forked(command, clean | setting, log, tmp_path)
    try:
        returncode = ended.wait(30)
    finally:
        ended.kill()

    reason, *rest = log.read_text().splitlines()
    assert returncode not in (0, None)
    assert reason.startswith("ERROR:    Cistern cannot start: ")
    assert variable in reason
    assert rest == ["ERROR:    Application startup failed. Exiting."]  # logged by uvicorn


def test_importing_the_app_has_no_side_effects(tmp_path: Path) -> None:
    code = "import api.main, logging, json; print(json.dumps([len(logging.root.handlers), api.main.app.state._state]))"
    root = str(Path(__file__).parents[2])
    imported = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True, check=True
    )

    assert json.loads(imported.stdout) == [0, {}]
    assert not list(tmp_path.iterdir())


def test_create_app_does_not_configure_logging(fake: FakeServices) -> None:
    before = list(logging.root.handlers)
    create_app(fake.factory())

    assert logging.root.handlers == before
