"""The short way answers as the ordinary way does, to the byte; whatever is unusual goes the ordinary way."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

import api.v1.job_cache
from api.middleware import BodyLimit
from domain.errors import DatabaseUnavailable
from domain.jobs.model import Job
from domain.jobs.states import JobStatus
from domain.volumes.states import VolumeState
from tests.unit.fakes import NOON, FakeServices, job_row, volume_row

JOBS = "/api/v1/jobs"
VOLUMES = "/api/v1/volumes"
SOME = "01a0b1c2-0000-7000-8000-00000000000a"
NAMED = {"X-Request-ID": "one-and-the-same"}
#: A wish that nobody understands changes nothing, but is unusual.
ORDINARY = {"Prefer": "to-be-left-alone"}
ALONE = {"name": "new", "size": "10GiB", "labels": {"stadt": "Köln 🌊"}}


@pytest.fixture
def passed_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests that went the ordinary way."""
    noted: list[str] = []
    go_on = BodyLimit.__call__

    async def note(self: BodyLimit, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            noted.append(scope["path"])
        await go_on(self, scope, receive, send)

    monkeypatch.setattr(BodyLimit, "__call__", note)
    return noted


def whole(answer: httpx.Response, *ids: object) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """All that is sent, in its order; ids that differ from one request to the next are left out."""
    content, headers = answer.content, answer.headers.raw
    for known in ids:
        mark = str(known).encode()
        content = content.replace(mark, b"ID")
        headers = [(name, value.replace(mark, b"ID")) for name, value in headers]
    return answer.status_code, headers, content


ENDED = {"status": JobStatus.SUCCEEDED, "started_at": NOON, "finished_at": NOON}
SHOWN: list[dict[str, Any]] = [
    {},
    {"status": JobStatus.RUNNING, "started_at": NOON, "created_by": "ich", "worker_id": UUID(int=7)},
    {"kind": "bulk.expand", "total": 9, "succeeded": 4, "failed": 1, "skipped": 2},
    {"params": {"to_size": 2**40, "fence": 7}, "error": {"code": "storage-busy", "detail": "Besetzt: „ü“.", "more": 1}},
    {**ENDED, "result": {"volume_id": str(UUID(int=3)), "size": 5}, "volume_id": UUID(int=3)},
    {**ENDED, "kind": "bulk.expand", "total": 10, "succeeded": 10},
]


@pytest.mark.parametrize("columns", SHOWN)
@pytest.mark.parametrize("seen", ["", "{tag}", 'W/{tag}, "other"', "*", '"other"'])
async def test_a_job_is_shown_as_the_ordinary_way_shows_it(
    fake: FakeServices, client: httpx.AsyncClient, passed_on: list[str], columns: dict[str, Any], seen: str
) -> None:
    job = fake.jobs.add(job_row(**columns))
    headers = NAMED | ({"If-None-Match": seen.format(tag=f'"{job.id}-{job.version}"')} if seen else {})
    ordinary = await client.get(f"{JOBS}/{job.id}", headers=headers | ORDINARY)
    assert len(passed_on) == 1

    for _ in range(2):
        assert whole(await client.get(f"{JOBS}/{job.id}", headers=headers)) == whole(ordinary)
    assert len(passed_on) == 1
    assert ordinary.status_code == (200 if seen in ("", '"other"') else 304)


async def test_a_job_that_nobody_knows_is_refused_as_the_ordinary_way_refuses_it(
    client: httpx.AsyncClient, passed_on: list[str]
) -> None:
    path = f"{JOBS}/{uuid4()}"
    short = await client.get(path, headers=NAMED)
    assert passed_on == []

    assert whole(short) == whole(await client.get(path, headers=NAMED | ORDINARY))
    assert short.json()["code"] == "job-not-found"


@pytest.mark.parametrize("caller", [None, "nightly", "x" * 129, "not ascii: ä"])
async def test_what_is_accepted_is_answered_as_by_the_ordinary_way(
    fake: FakeServices, client: httpx.AsyncClient, passed_on: list[str], caller: str | None
) -> None:
    volume = fake.volumes.add(volume_row())
    headers = NAMED | ({} if caller is None else {"X-Cistern-Caller": caller})
    said = {name.encode(): value.encode() for name, value in headers.items()}
    for path, body in [(VOLUMES, ALONE), (f"{VOLUMES}/{volume.id}/expand", {"percent": 12.5})]:
        answers = []
        more: dict[bytes, bytes]
        for more in ({}, {b"Prefer": b"to-be-left-alone"}):
            answer = await client.post(path, json=body, headers=said | more)
            job = fake.jobs.rows[UUID(answer.json()["id"])]
            answers.append(whole(answer, job.id, job.volume_id))
            fake.volumes.rows = {volume.id: volume}
            volume.state = VolumeState.AVAILABLE

        assert answers[0] == answers[1]
        assert answers[0][0] == 202
        assert len(passed_on) == 1
        passed_on.clear()


async def test_what_is_refused_is_refused_as_by_the_ordinary_way(
    fake: FakeServices, client: httpx.AsyncClient, passed_on: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = fake.volumes.add(volume_row("there"))
    busy = fake.volumes.add(volume_row("busy", state=VolumeState.EXPANDING, job_id=uuid4()))
    broken = fake.volumes.add(volume_row("broken", state=VolumeState.ERROR))
    cases: list[tuple[str, Any, str]] = [
        (VOLUMES, {"name": "there", "size": 1}, "name-taken"),
        (VOLUMES, {"name": "new", "size": 1, "backend": "tape"}, "unknown-backend"),
        (VOLUMES, {"name": "new", "from_snapshot": str(uuid4())}, "snapshot-not-found"),
        (f"{VOLUMES}/{uuid4()}/expand", {"by": 1}, "volume-not-found"),
        (f"{VOLUMES}/{busy.id}/expand", {"by": 1}, "volume-busy"),
        (f"{VOLUMES}/{broken.id}/expand", {"by": 1}, "volume-unusable"),
        (f"{VOLUMES}/{there.id}/expand", {"to": 1}, "shrink-refused"),
    ]
    for path, body, code in cases:
        passed_on.clear()
        short = await client.post(path, json=body, headers=NAMED)
        assert passed_on == []

        assert whole(short) == whole(await client.post(path, json=body, headers=NAMED | ORDINARY))
        assert short.json()["code"] == code

    async def unavailable(*_: object, **__: object) -> Job:
        raise DatabaseUnavailable

    monkeypatch.setattr(fake.volumes, "request_create", unavailable)
    short = await client.post(VOLUMES, json=ALONE, headers=NAMED)
    assert whole(short) == whole(await client.post(VOLUMES, json=ALONE, headers=NAMED | ORDINARY))
    assert (short.status_code, short.headers["retry-after"]) == (503, "1")


JSON = {"Content-Type": "application/json"}
GOOD = json.dumps(ALONE).encode()


async def in_parts() -> AsyncIterator[bytes]:
    yield GOOD[:10]
    yield GOOD[10:]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"headers": JSON, "content": GOOD, "params": {"dry": "run"}}, 422),
        ({"headers": JSON | {"Idempotency-Key": "once"}, "content": GOOD}, 202),
        ({"headers": JSON | {"Prefer": "wait=1"}, "content": GOOD}, 202),
        ({"headers": {"Content-Type": "application/json; charset=utf-8"}, "content": GOOD}, 202),
        ({"headers": {"Content-Type": "text/plain"}, "content": GOOD}, 415),
        ({"content": GOOD}, 415),
        ({"headers": [*JSON.items(), ("X-Cistern-Caller", "a"), ("X-Cistern-Caller", "b")], "content": GOOD}, 202),
        ({"headers": JSON, "content": b" " * 2**17 + GOOD}, 202),
        ({"headers": JSON, "content": b" " * 2**21 + GOOD}, 413),
        ({"headers": JSON, "content": b""}, 422),
        ({"headers": JSON, "content": b"{"}, 400),
        ({"headers": JSON, "content": b"\xff"}, 400),
        ({"headers": JSON, "content": b"[" * 100_000}, 400),
        ({"headers": JSON, "content": b"[]"}, 422),
        ({"headers": JSON, "content": b'{"name": "a", "size": true}'}, 422),
        ({"headers": JSON, "content": b'{"name": "a", "size": 1, "more": 1}'}, 422),
    ],
)
async def test_whatever_is_unusual_goes_the_ordinary_way_with_all_that_was_said(
    client: httpx.AsyncClient, passed_on: list[str], request_: dict[str, Any], status: int
) -> None:
    answer = await client.post(VOLUMES, **request_)

    assert (answer.status_code, passed_on) == (status, [VOLUMES]), answer.text


async def test_a_body_may_come_in_parts(client: httpx.AsyncClient, passed_on: list[str]) -> None:
    answer = await client.post(VOLUMES, headers=JSON, content=in_parts())

    assert (answer.status_code, passed_on) == (202, [])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{JOBS}/{SOME}?x=y"),
        ("GET", f"{JOBS}/{SOME.upper()}"),
        ("GET", f"{JOBS}/{SOME}/"),
        ("GET", f"{JOBS}/{SOME}%0a"),
        ("HEAD", f"{JOBS}/{SOME}"),
        ("POST", f"{JOBS}/{SOME}"),
        ("GET", f"{VOLUMES}/{SOME}/expand"),
        ("POST", f"{VOLUMES}/"),
        ("POST", f"{VOLUMES}/expand"),
    ],
)
async def test_every_other_address_is_left_to_the_ordinary_way(
    client: httpx.AsyncClient, passed_on: list[str], method: str, path: str
) -> None:
    await client.request(method, path)

    assert len(passed_on) == 1


async def test_an_ended_job_is_remembered_for_half_a_minute(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = fake.jobs.add(job_row(status=JobStatus.FAILED, finished_at=NOON))
    first = await client.get(f"{JOBS}/{job.id}", headers=NAMED)
    del fake.jobs.rows[job.id]

    assert whole(await client.get(f"{JOBS}/{job.id}", headers=NAMED)) == whole(first)
    later = time.monotonic() + 31
    monkeypatch.setattr("api.v1.job_cache.time.monotonic", lambda: later)
    assert (await client.get(f"{JOBS}/{job.id}")).status_code == 404


async def test_a_live_job_is_looked_at_every_time(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())
    tags = []
    for version in (1, 2, 3):
        job.version = version
        tags.append((await client.get(f"{JOBS}/{job.id}")).headers["etag"])

    assert tags == [f'"{job.id}-{version}"' for version in (1, 2, 3)]


async def test_only_so_much_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.v1.job_cache._MOST", 3)
    ended = api.v1.job_cache.EndedJobCache()
    small = [api.v1.job_cache.render(job_row(status=JobStatus.FAILED, finished_at=NOON)) for _ in range(4)]
    large = api.v1.job_cache.render(job_row(status=JobStatus.FAILED, finished_at=NOON, params={"ids": ["x" * 5000]}))
    for name, job in zip("abcd", small, strict=True):
        ended.keep(name, job)
    ended.keep("large", large)

    assert [ended.recall(name) for name in ("a", "b", "c", "d", "large")] == [None, *small[1:], None]
