"""Hot routes send the same bytes as the routes behind them, and pass unusual requests on to these."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

import api.v1.hot_routes
import api.v1.job_cache
from domain.access.model import Role
from domain.db.base import DEFAULT_PROJECT
from domain.errors import CisternError, DatabaseUnavailable
from domain.jobs.model import Job
from domain.jobs.states import JobStatus
from domain.operations import VolumeState
from tests.unit.fake_keys import bearer
from tests.unit.fakes import NOON, FakeServices, job_row, volume_row

JOBS = "/api/v1/jobs"
VOLUMES = "/api/v1/volumes"
SOME_ID = "01a0b1c2-0000-7000-8000-00000000000a"
REQUEST_ID = {"X-Request-ID": "one-and-the-same"}
#: An unknown preference changes nothing, but sends the request to the route.
SLOW_PATH = {"Prefer": "to-be-left-alone"}
VOLUME = {"name": "new", "size": "10GiB", "labels": {"stadt": "Köln 🌊"}}


@pytest.fixture
def passed_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the requests that no hot route has answered."""
    paths: list[str] = []
    answer = api.v1.hot_routes._answer

    async def record(scope: Any, receive: Any) -> Any:
        paths.append(scope["path"])
        try:
            response = await answer(scope, receive)
        except CisternError:  # answered with a problem
            paths.remove(scope["path"])
            raise
        if response is not None:
            paths.remove(scope["path"])
        return response

    monkeypatch.setattr(api.v1.hot_routes, "_answer", record)
    return paths


def sent(response: httpx.Response, *ids: object) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers in their order and body, with a placeholder for ``ids``."""
    content, headers = response.content, response.headers.raw
    for one in ids:
        text = str(one).encode()
        content = content.replace(text, b"ID")
        headers = [(name, value.replace(text, b"ID")) for name, value in headers]
    return response.status_code, headers, content


ENDED = {"status": JobStatus.SUCCEEDED, "started_at": NOON, "finished_at": NOON}
JOBS_WITH: list[dict[str, Any]] = [
    {},
    {"status": JobStatus.RUNNING, "started_at": NOON, "created_by": "ich", "worker_id": UUID(int=7)},
    {"kind": "bulk.expand", "total": 9, "succeeded": 4, "failed": 1, "skipped": 2},
    {
        "params": {"to_size": 2**40, "fence_version": 7},
        "error": {"code": "storage-busy", "detail": "Besetzt: „ü“.", "more": 1},
    },
    {**ENDED, "result": {"volume_id": str(UUID(int=3)), "size": 5}, "volume_id": UUID(int=3)},
    {**ENDED, "kind": "bulk.expand", "total": 10, "succeeded": 10},
]


@pytest.mark.parametrize("columns", JOBS_WITH)
@pytest.mark.parametrize("if_none_match", ["", "{tag}", 'W/{tag}, "other"', "*", '"other"'])
async def test_hot_route_and_route_return_identical_jobs(
    fake: FakeServices, client: httpx.AsyncClient, passed_on: list[str], columns: dict[str, Any], if_none_match: str
) -> None:
    job = fake.jobs.add(job_row(**columns))
    tag = if_none_match.format(tag=f'"{job.id}-{job.version}"')
    headers = REQUEST_ID | ({"If-None-Match": tag} if tag else {})
    slow = await client.get(f"{JOBS}/{job.id}", headers=headers | SLOW_PATH)
    assert len(passed_on) == 1

    for _ in range(2):
        assert sent(await client.get(f"{JOBS}/{job.id}", headers=headers)) == sent(slow)
    assert len(passed_on) == 1
    assert slow.status_code == (200 if if_none_match in ("", '"other"') else 304)


async def test_hot_route_and_route_return_identical_404s(client: httpx.AsyncClient, passed_on: list[str]) -> None:
    path = f"{JOBS}/{uuid4()}"
    fast = await client.get(path, headers=REQUEST_ID)
    assert passed_on == []

    assert sent(fast) == sent(await client.get(path, headers=REQUEST_ID | SLOW_PATH))
    assert fast.json()["code"] == "job-not-found"


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.OWNER])
async def test_hot_route_and_route_return_identical_accepted_jobs(
    fake: FakeServices, client: httpx.AsyncClient, passed_on: list[str], role: Role
) -> None:
    volume = fake.volumes.add(volume_row())
    named = REQUEST_ID | bearer(role)
    headers = {name.encode(): value.encode() for name, value in named.items()}
    for path, body in [(VOLUMES, VOLUME), (f"{VOLUMES}/{volume.id}/expand", {"percent": 12.5})]:
        responses = []
        extra: dict[bytes, bytes]
        for extra in ({}, {b"Prefer": b"to-be-left-alone"}):
            response = await client.post(path, json=body, headers=headers | extra)
            job = fake.jobs.rows[UUID(response.json()["id"])]
            responses.append(sent(response, job.id, job.volume_id))
            fake.volumes.rows = {volume.id: volume}
            volume.state = VolumeState.AVAILABLE

        assert responses[0] == responses[1]
        assert responses[0][0] == 202
        assert len(passed_on) == 1
        passed_on.clear()


async def test_hot_route_and_route_return_identical_errors(
    fake: FakeServices, client: httpx.AsyncClient, passed_on: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    existing = fake.volumes.add(volume_row("existing"))
    busy = fake.volumes.add(volume_row("busy", state=VolumeState.EXPANDING, job_id=uuid4()))
    broken = fake.volumes.add(volume_row("broken", state=VolumeState.ERROR))
    cases: list[tuple[str, Any, str]] = [
        (VOLUMES, {"name": "existing", "size": 1}, "name-taken"),
        (VOLUMES, {"name": "new", "size": 1, "backend": "tape"}, "unknown-backend"),
        (VOLUMES, {"name": "new", "from_snapshot": str(uuid4())}, "snapshot-not-found"),
        (f"{VOLUMES}/{uuid4()}/expand", {"by": 1}, "volume-not-found"),
        (f"{VOLUMES}/{busy.id}/expand", {"by": 1}, "volume-busy"),
        (f"{VOLUMES}/{broken.id}/expand", {"by": 1}, "volume-unusable"),
        (f"{VOLUMES}/{existing.id}/expand", {"to": 1}, "shrink-refused"),
    ]
    for path, body, code in cases:
        passed_on.clear()
        fast = await client.post(path, json=body, headers=REQUEST_ID)
        assert passed_on == []

        assert sent(fast) == sent(await client.post(path, json=body, headers=REQUEST_ID | SLOW_PATH))
        assert fast.json()["code"] == code

    async def unavailable(*_: object, **__: object) -> Job:
        raise DatabaseUnavailable

    monkeypatch.setattr(fake.volumes, "request_create", unavailable)
    fast = await client.post(VOLUMES, json=VOLUME, headers=REQUEST_ID)
    assert sent(fast) == sent(await client.post(VOLUMES, json=VOLUME, headers=REQUEST_ID | SLOW_PATH))
    assert (fast.status_code, fast.headers["retry-after"]) == (503, "1")


JSON = {"Content-Type": "application/json"}
VALID = json.dumps(VOLUME).encode()


async def chunks() -> AsyncIterator[bytes]:
    yield VALID[:10]
    yield VALID[10:]


@pytest.mark.parametrize(
    ("request_arguments", "status"),
    [
        ({"headers": JSON, "content": VALID, "params": {"dry": "run"}}, 422),
        ({"headers": JSON | {"Idempotency-Key": "once"}, "content": VALID}, 202),
        ({"headers": JSON | {"Prefer": "wait=1"}, "content": VALID}, 202),
        ({"headers": {"Content-Type": "application/json; charset=utf-8"}, "content": VALID}, 202),
        ({"headers": {"Content-Type": "text/plain"}, "content": VALID}, 415),
        ({"content": VALID}, 415),
        ({"headers": [*JSON.items(), ("X-Other", "a"), ("X-Other", "b")], "content": VALID}, 202),
        ({"headers": JSON, "content": b""}, 422),
        ({"headers": JSON, "content": b"{"}, 400),
        ({"headers": JSON, "content": b"\xff"}, 400),
        ({"headers": JSON, "content": b"[" * 60_000}, 400),
        ({"headers": JSON, "content": b"[]"}, 422),
        ({"headers": JSON, "content": b'{"name": "a", "size": true}'}, 422),
        ({"headers": JSON, "content": b'{"name": "a", "size": 1, "more": 1}'}, 422),
    ],
)
async def test_unusual_post_reaches_the_route_with_its_whole_body(
    client: httpx.AsyncClient, passed_on: list[str], request_arguments: dict[str, Any], status: int
) -> None:
    response = await client.post(VOLUMES, **request_arguments)

    assert (response.status_code, passed_on) == (status, [VOLUMES]), response.text


async def test_hot_route_refuses_too_large_a_body_as_every_route_does(client: httpx.AsyncClient) -> None:
    large = b" " * 2**21 + VALID
    hot = await client.post(VOLUMES, headers=JSON | REQUEST_ID, content=large)

    assert sent(hot) == sent(await client.post(VOLUMES, headers=JSON | REQUEST_ID | SLOW_PATH, content=large))
    assert hot.status_code == 413


async def test_hot_route_accepts_a_chunked_body(client: httpx.AsyncClient, passed_on: list[str]) -> None:
    response = await client.post(VOLUMES, headers=JSON, content=chunks())

    assert (response.status_code, passed_on) == (202, [])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{JOBS}/{SOME_ID}?x=y"),
        ("GET", f"{JOBS}/{SOME_ID[:8]}-{SOME_ID.replace('-', '')[8:]}"),
        ("GET", f"{JOBS}/{SOME_ID}%0a"),
        ("POST", f"{JOBS}/{SOME_ID}"),
        ("GET", f"{VOLUMES}/{SOME_ID}/expand"),
        ("POST", f"{VOLUMES}/expand"),
    ],
)
async def test_other_methods_and_paths_reach_the_route(
    client: httpx.AsyncClient, passed_on: list[str], method: str, path: str
) -> None:
    await client.request(method, path)

    assert len(passed_on) == 1


async def test_ended_job_is_cached_for_30_seconds(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = fake.jobs.add(job_row(status=JobStatus.FAILED, finished_at=NOON))
    first = await client.get(f"{JOBS}/{job.id}", headers=REQUEST_ID)
    del fake.jobs.rows[job.id]

    assert sent(await client.get(f"{JOBS}/{job.id}", headers=REQUEST_ID)) == sent(first)
    later = time.monotonic() + 31
    monkeypatch.setattr("api.v1.job_cache.time.monotonic", lambda: later)
    assert (await client.get(f"{JOBS}/{job.id}")).status_code == 404


async def test_active_job_is_never_cached(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())
    etags = []
    for version in (1, 2, 3):
        job.version = version
        etags.append((await client.get(f"{JOBS}/{job.id}")).headers["etag"])

    assert etags == [f'"{job.id}-{version}"' for version in (1, 2, 3)]


async def test_cache_evicts_the_oldest_job_and_skips_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.v1.job_cache._MAX_JOBS", 3)
    cache = api.v1.job_cache.EndedJobCache()
    small = [api.v1.job_cache.render(job_row(status=JobStatus.FAILED, finished_at=NOON)) for _ in range(4)]
    large = api.v1.job_cache.render(job_row(status=JobStatus.FAILED, finished_at=NOON, params={"ids": ["x" * 5000]}))
    ids = [str(uuid4()) for _ in range(5)]
    for job_id, job in zip(ids, [*small, large], strict=True):
        cache.put(DEFAULT_PROJECT, job_id, job)

    assert [cache.get(DEFAULT_PROJECT, job_id) for job_id in ids] == [None, *small[1:], None]


@pytest.mark.parametrize("content_type", [b"application/json", b"text/plain"])
async def test_client_that_disconnects_while_it_sends_its_body_is_not_an_error_of_the_server(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, content_type: bytes
) -> None:
    app: Any = client._transport.app  # type: ignore[attr-defined]
    messages = iter([{"type": "http.request", "body": b'{"na', "more_body": True}, {"type": "http.disconnect"}])
    statuses: list[int] = []

    async def receive() -> Any:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    headers = [(b"host", b"x"), (b"content-type", content_type)]
    scope = {"type": "http", "method": "POST", "path": VOLUMES, "raw_path": VOLUMES.encode(), "query_string": b""}
    await app({**scope, "headers": headers, "http_version": "1.1", "scheme": "http"}, receive, send)

    assert all(status < 500 for status in statuses)
    assert "request.failed" not in caplog.text
