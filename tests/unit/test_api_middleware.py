"""What surrounds every request: its id, and the last word when something breaks; and the start of the process."""

import json
import logging
import os
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
import structlog

from api.main import Opening, create_app
from domain.errors import CisternError, DatabaseUnavailable
from domain.logs import name_the_subject
from domain.services import Services
from tests.unit.fakes import FakeServices, volume_row


@pytest.mark.parametrize("sane", ["a", "0f8fad5b-d9cb-469f-a165-70867728950e", "a" * 128])
async def test_a_sane_request_id_is_kept(client: httpx.AsyncClient, sane: str) -> None:
    answer = await client.get("/nowhere", headers={"X-Request-ID": sane})

    assert (answer.headers["x-request-id"], answer.json()["request_id"]) == (sane, sane)


@pytest.mark.parametrize("odd", ["", "a b", "a" * 129, "a;b", '"', "<script>"])
async def test_an_odd_request_id_is_replaced(client: httpx.AsyncClient, odd: str) -> None:
    answer = await client.get("/nowhere", headers={"X-Request-ID": odd})

    assert answer.headers["x-request-id"] != odd
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


async def test_every_request_has_an_id_of_its_own(client: httpx.AsyncClient) -> None:
    ids = {(await client.get("/healthz")).headers["x-request-id"] for _ in range(3)}

    assert len(ids) == 3


async def break_down(*_: object) -> None:
    raise RuntimeError("the password is hunter2")


async def test_a_bug_is_a_500_that_tells_nothing_but_is_logged_under_its_id(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake.volumes, "get", break_down)
    with structlog.testing.capture_logs(processors=[name_the_subject]) as logs:
        answer = await client.get(f"/api/v1/volumes/{volume_row().id}", headers={"X-Request-ID": "find-me"})

    told = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert (told["code"], told["request_id"], answer.headers["x-request-id"]) == ("internal", "find-me", "find-me")
    assert "hunter2" not in answer.text
    assert [(log["event"], log["request_id"]) for log in logs] == [("request.failed", "find-me")]


async def test_an_error_without_a_row_in_the_table_is_our_fault(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def surprise(*_: object) -> None:
        raise CisternError("the password is hunter2")

    monkeypatch.setattr(fake.volumes, "get", surprise)
    answer = await client.get(f"/api/v1/volumes/{volume_row().id}")

    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "hunter2" not in answer.text


async def test_a_missing_database_is_a_503_that_says_when_to_come_back(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(*_: object, **__: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(fake.volumes, "request_create", unavailable)
    answer = await client.post("/api/v1/volumes", json={"name": "a", "size": 1})

    assert (answer.status_code, answer.json()["code"]) == (503, "database-unavailable")
    assert answer.headers["retry-after"] == "1"


async def start(opening: Opening) -> list[dict[str, Any]]:
    """Start an app as a server does; returns what it says."""
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        said.append(message)

    await create_app(opening)({"type": "lifespan", "state": {}}, receive, send)
    return said


class Failing(AbstractAsyncContextManager[Services]):
    """Services that cannot be opened."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def __aenter__(self) -> NoReturn:
        raise self.error

    async def __aexit__(self, *_: object) -> None:
        raise AssertionError("never opened")


async def test_a_missing_database_at_the_start_is_one_line() -> None:
    assert await start(lambda: Failing(DatabaseUnavailable())) == [
        {
            "type": "lifespan.startup.failed",
            "message": "Cistern cannot start: PostgreSQL does not answer at the moment.",
        }
    ]


async def test_a_bug_at_the_start_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        await start(lambda: Failing(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({}, "CISTERN_DATABASE_URL"),
        ({"CISTERN_MAX_JOBS": "many"}, "CISTERN_MAX_JOBS"),
        ({"CISTERN_BACKENDS": "{"}, "CISTERN_BACKENDS"),
        ({"CISTERN_DATABASE_URL": "postgresql+asyncpg://u@h/d"}, "CISTERN_REDIS_URL"),
    ],
    ids=str,
)
def test_a_bad_setting_ends_the_server_with_one_line(tmp_path: Path, setting: dict[str, str], said: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CISTERN_")}
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-m", "uvicorn", "--log-level", "warning", "--port", "0", "api.main:app"],
        cwd=tmp_path,
        env=clean | {"PYTHONPATH": root} | setting,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    reason, *rest = ended.stderr.splitlines()
    assert ended.returncode not in (0, None)
    assert reason.startswith("ERROR:    Cistern cannot start: ")
    assert said in reason
    assert rest == ["ERROR:    Application startup failed. Exiting."]  # uvicorn's own word


def test_importing_the_app_does_no_work(tmp_path: Path) -> None:
    code = "import api.main, logging, json; print(json.dumps([len(logging.root.handlers), api.main.app.state._state]))"
    root = str(Path(__file__).parents[2])
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True, check=True
    )

    assert json.loads(said.stdout) == [0, {}]
    assert not list(tmp_path.iterdir())


def test_logging_is_left_alone_by_a_test_that_brings_its_own_services(fake: FakeServices) -> None:
    before = list(logging.root.handlers)
    create_app(fake.opening())

    assert logging.root.handlers == before
