"""Invalid input is rejected as problem+json with a stable code, and changes nothing."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from domain.operations import VolumeState
from domain.volumes.model import MAX_SIZE
from tests.unit.fakes import FakeServices, job_row, volume_row

VOLUMES = "/api/v1/volumes"


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), (
        response.text
    )
    body: dict[str, Any] = response.json()
    assert (body["code"], body["status"], body["type"]) == (code, status, f"/problems/{code}")
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]
    return body


def fields(body: dict[str, Any]) -> list[str]:
    return [one["field"] for one in body["errors"]]


BAD_NAMES: list[Any] = [
    "",
    "a/b",
    "../etc",
    ".",
    "a/b",
    "-a",
    "_a",
    "a b",
    "a\n",
    "a\x00b",
    "a\x1b[31m",
    "\u202eevil",
    "\uff41",
    "\xe9",
    "a\ud800",
    "a" * 129,
    "a" * 10_000,
    5,
    None,
    ["a"],
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
async def test_invalid_name_is_rejected(fake: FakeServices, client: httpx.AsyncClient, name: object) -> None:
    body = json.dumps({"name": name, "size": 1})  # with \\u escapes: httpx rejects a lone surrogate
    response = await client.post(VOLUMES, content=body, headers={"Content-Type": "application/json"})

    assert fields(problem(response, 422, "invalid")) == ["name"]
    assert not fake.volumes.rows
    assert not fake.jobs.rows


BAD_SIZES: list[Any] = [
    0,
    -1,
    0.5,
    True,
    None,
    [],
    "",
    "0",
    "-1GiB",
    "1.5",
    "10 apples",
    "10GiB or so",
    "10/2",
    "1_000",
    "1e3",
    "\u0661\u0660",
    "9" * 400 + "GiB",
    "65TiB",
    MAX_SIZE + 1,
    2**63,
    2**64,
    10**300,
    1e300,
    float("inf"),
    float("nan"),
]


@pytest.mark.parametrize("size", BAD_SIZES, ids=lambda size: repr(size)[:20])
async def test_invalid_size_is_rejected(fake: FakeServices, client: httpx.AsyncClient, size: object) -> None:
    body = json.dumps({"name": "a", "size": size})
    response = await client.post(VOLUMES, content=body, headers={"Content-Type": "application/json"})

    assert fields(problem(response, 422, "invalid")) == ["size"]
    assert not fake.volumes.rows


BAD_MEMBERS: list[dict[str, Any]] = [
    {"name": None},
    {"colour": "blue"},
    {"labels": None},
    {"labels": {"": "a"}},
    {"labels": {"a b": "c"}},
    {"labels": {"a" * 64: "b"}},
    {"labels": {"a": "b" * 257}},
    {"labels": {"a": "\x00"}},
    {"labels": {"a": "\ud800"}},
    {"labels": {"\ud800": "a"}},
    {"labels": {"a": 1}},
    {"labels": {f"a{n}": "b" for n in range(65)}},
    {"backend": ""},
    {"backend": "a\x00"},
    {"autogrow": {}},
]


@pytest.mark.parametrize("member", BAD_MEMBERS, ids=lambda member: ascii(member)[:50])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_invalid_volume_member_is_rejected_with_its_path(
    fake: FakeServices, client: httpx.AsyncClient, method: str, member: dict[str, Any]
) -> None:
    volume = fake.volumes.add(volume_row())
    path, valid = (VOLUMES, {"name": "b", "size": 1}) if method == "POST" else (f"{VOLUMES}/{volume.id}", {})
    response = await client.request(
        method, path, content=json.dumps(valid | member), headers={"Content-Type": "application/json"}
    )

    (name,) = member
    assert fields(problem(response, 422, "invalid"))[0].startswith(name)
    assert (volume.labels, volume.autogrow) == ({}, None)
    assert len(fake.volumes.rows) == 1


@pytest.mark.parametrize(
    "growth",
    [
        {"to": 0},
        {"to": None},
        {"to": 2048, "by": None},
        {"by": -1},
        {"to": MAX_SIZE + 1},
        {"to": 0.5},
        {"percent": 0},
        {"percent": True},
        {"percent": "10"},
        {"percent": float("nan")},
        {"percent": float("inf")},
        {"percent": 1e308},
        {"to": 2048, "by": 1024},
        {"to": 2048, "step": 1},
    ],
    ids=repr,
)
async def test_invalid_growth_is_rejected(
    fake: FakeServices, client: httpx.AsyncClient, growth: dict[str, Any]
) -> None:
    volume = fake.volumes.add(volume_row())
    response = await client.post(
        f"{VOLUMES}/{volume.id}/expand", content=json.dumps(growth), headers={"Content-Type": "application/json"}
    )

    problem(response, 422, "invalid")
    assert volume.state is VolumeState.AVAILABLE


async def test_empty_growth_error_lists_the_choices(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row())
    error = problem(await client.post(f"{VOLUMES}/{volume.id}/expand", json={}), 422, "growth-required")

    assert all(choice in error["detail"] for choice in ("`to`", "`by`", "`percent`"))


async def test_shrink_error_has_the_present_size(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row(size=8192))
    error = problem(await client.post(f"{VOLUMES}/{volume.id}/expand", json={"to": 4096}), 422, "shrink-refused")

    assert (error["size"], fields(error)) == (8192, ["to"])
    assert volume.state is VolumeState.AVAILABLE


async def test_size_limit_error_has_the_limit(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row(size=8192))
    error = problem(
        await client.post(f"{VOLUMES}/{volume.id}/expand", json={"by": "64TiB"}), 422, "size-limit-exceeded"
    )

    assert error["limit"] == MAX_SIZE


async def test_busy_volume_error_has_the_id_of_its_job(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job_id = uuid4()
    volume = fake.volumes.add(volume_row(state=VolumeState.EXPANDING, job_id=job_id))

    for response in (
        await client.post(f"{VOLUMES}/{volume.id}/expand", json={"by": 1}),
        await client.delete(f"{VOLUMES}/{volume.id}"),
    ):
        assert problem(response, 409, "volume-busy")["job_id"] == str(job_id)


async def test_volume_in_error_cannot_be_expanded(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row(state=VolumeState.ERROR))

    problem(await client.post(f"{VOLUMES}/{volume.id}/expand", json={"by": 1}), 409, "volume-unusable")


async def test_volume_names_are_unique(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.volumes.add(volume_row("one"))
    other = fake.volumes.add(volume_row("two"))

    problem(await client.post(VOLUMES, json={"name": "one", "size": 1}), 409, "name-taken")
    problem(await client.patch(f"{VOLUMES}/{other.id}", json={"name": "one"}), 409, "name-taken")
    assert (len(fake.volumes.rows), other.name) == (2, "two")


async def test_unknown_backend_of_a_volume_is_rejected(fake: FakeServices, client: httpx.AsyncClient) -> None:
    response = await client.post(VOLUMES, json={"name": "a", "size": 1, "backend": "tape"})

    assert fields(problem(response, 422, "unknown-backend")) == ["backend"]
    assert not fake.volumes.rows


UNKNOWN = UUID("00000000-0000-7000-8000-000000000000")


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", f"{VOLUMES}/{UNKNOWN}", "volume-not-found"),
        ("PATCH", f"{VOLUMES}/{UNKNOWN}", "volume-not-found"),
        ("DELETE", f"{VOLUMES}/{UNKNOWN}", "volume-not-found"),
        ("POST", f"{VOLUMES}/{UNKNOWN}/expand", "volume-not-found"),
        ("GET", f"/api/v1/jobs/{UNKNOWN}", "job-not-found"),
        ("POST", f"/api/v1/jobs/{UNKNOWN}/cancel", "job-not-found"),
        ("POST", f"/api/v1/jobs/{UNKNOWN}/retry", "job-not-found"),
        ("GET", "/problems/boredom", "not-found"),
        ("GET", f"{VOLUMES}/", "not-found"),
        ("GET", "/api/v2/volumes", "not-found"),
        ("GET", "/nowhere", "not-found"),
    ],
)
async def test_unknown_id_or_path_is_404(client: httpx.AsyncClient, method: str, path: str, code: str) -> None:
    body = {"by": 1} if path.endswith("expand") else {}
    error = problem(await client.request(method, path, json=body), 404, code)

    assert error["instance"] == path


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_malformed_volume_id_is_422(client: httpx.AsyncClient, method: str) -> None:
    response = await client.request(method, f"{VOLUMES}/not-an-id", json={})

    assert fields(problem(response, 422, "invalid")) == ["volume_id"]


async def test_405_lists_the_allowed_methods(client: httpx.AsyncClient) -> None:
    response = await client.put(VOLUMES, json={})
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "GET, POST"

    response = await client.post(f"{VOLUMES}/{UNKNOWN}", json={})
    assert response.headers["allow"] == "DELETE, GET, PATCH"


@pytest.mark.parametrize(
    "body", [b"{", b"{'name': 1}", b"\xff", b'{"name": "\xff"}', b"[" * 60_000, b'{"size": ' + b"9" * 5000 + b"}"]
)
async def test_malformed_json_is_400(fake: FakeServices, client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post(VOLUMES, content=body, headers={"Content-Type": "application/json"})

    problem(response, 400, "malformed-json")
    assert not fake.volumes.rows


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"5", b'"name"'])
async def test_body_that_is_not_an_object_is_rejected(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post(VOLUMES, content=body, headers={"Content-Type": "application/json"})

    assert fields(problem(response, 422, "invalid")) == ["body"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "json"])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_body_not_declared_as_json_is_415(
    fake: FakeServices, client: httpx.AsyncClient, method: str, kind: str | None
) -> None:
    path = VOLUMES if method == "POST" else f"{VOLUMES}/{fake.volumes.add(volume_row()).id}"
    headers = {"Content-Type": kind} if kind else {}
    response = await client.request(method, path, content=b'{"name": "a", "size": 1}', headers=headers)

    problem(response, 415, "unsupported-media-type")
    assert not fake.jobs.rows


async def test_every_route_rejects_undeclared_query_parameters_and_media_types(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    operations = [(method, path, one) for path, methods in paths.items() for method, one in methods.items()]
    for method, template, operation in operations:
        path = re.sub(r"{\w+}", str(UNKNOWN), template)
        assert fields(problem(await client.request(method, f"{path}?misspelt=1"), 422, "invalid")) == ["misspelt"]
        if "requestBody" in operation:
            problem(await client.request(method, path, content=b"{}"), 415, "unsupported-media-type")

    assert len(operations) > 40


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"]
)
async def test_json_media_types_are_accepted(client: httpx.AsyncClient, kind: str) -> None:
    response = await client.post(VOLUMES, content=b'{"name": "a", "size": 1}', headers={"Content-Type": kind})

    assert response.status_code == 202


async def test_body_over_the_limit_is_413(fake: FakeServices, client: httpx.AsyncClient) -> None:
    async def undeclared() -> AsyncIterator[bytes]:
        for _ in range(2**4 + 1):
            yield b" " * 2**12

    headers = {"Content-Type": "application/json"}

    problem(await client.post(VOLUMES, content=b" " * (2**16 + 1), headers=headers), 413, "content-too-large")
    problem(await client.post(VOLUMES, content=undeclared(), headers=headers), 413, "content-too-large")
    assert not fake.volumes.rows


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=ten",
        "limit=1.5",
        "limit=" + "9" * 5000,
        "state=busy",
        "state=",
        "name=a%00",
        "name=a%2Fb",
        "label=team",
        "label=team:%00",
        "label=a%20b:c",
        "label=a:1&label=a:2",
        "colour=blue",
        "Limit=5",
        "status=queued",
    ],
    ids=lambda query: query[:30],
)
async def test_invalid_volume_filter_is_rejected_with_its_name(client: httpx.AsyncClient, query: str) -> None:
    response = await client.get(f"{VOLUMES}?{query}")

    assert fields(problem(response, 422, "invalid"))[0].startswith(query.partition("=")[0])


@pytest.mark.parametrize(
    "query", ["status=done", "kind=%00", "kind=Volume", "volume_id=5", "parent_id=", "state=error"]
)
async def test_invalid_job_filter_is_rejected_with_its_name(client: httpx.AsyncClient, query: str) -> None:
    response = await client.get(f"/api/v1/jobs?{query}")

    assert fields(problem(response, 422, "invalid")) == [query.partition("=")[0]]


@pytest.mark.parametrize(
    "path",
    [f"{VOLUMES}/{UNKNOWN}", f"/api/v1/jobs/{UNKNOWN}", "/api/v1/backends", "/healthz", "/readyz", "/problems"],
)
async def test_route_without_parameters_rejects_a_query(client: httpx.AsyncClient, path: str) -> None:
    assert fields(problem(await client.get(f"{path}?verbose=1"), 422, "invalid")) == ["verbose"]


@pytest.mark.parametrize("cursor", ["", "x", "ä", "%00", "AAAA", "A" * 5000, "A" * 32])
async def test_forged_cursor_is_rejected(client: httpx.AsyncClient, cursor: str) -> None:
    assert fields(problem(await client.get(f"{VOLUMES}?cursor={cursor}"), 422, "bad-cursor")) == ["cursor"]


async def test_cursor_is_bound_to_its_list_and_filters(fake: FakeServices, client: httpx.AsyncClient) -> None:
    for name in "abc":
        fake.volumes.add(volume_row(name, labels={"team": "search"}))
        fake.jobs.add(job_row())
    cursor = (await client.get(f"{VOLUMES}?limit=1")).json()["next_cursor"]

    assert (await client.get(f"{VOLUMES}?limit=2&cursor={cursor}")).status_code == 200
    problem(await client.get(f"/api/v1/jobs?cursor={cursor}"), 422, "bad-cursor")
    problem(await client.get(f"{VOLUMES}?cursor={cursor}&state=available"), 422, "bad-cursor")
    problem(await client.get(f"{VOLUMES}?cursor={cursor}&label=team:search"), 422, "bad-cursor")


async def test_all_invalid_members_are_reported_at_once(client: httpx.AsyncClient) -> None:
    error = problem(await client.post(VOLUMES, json={"size": 0, "colour": "blue"}), 422, "invalid")

    assert sorted(fields(error)) == ["colour", "name", "size"]
    assert {one["code"] for one in error["errors"]} == {"missing", "extra-forbidden", "greater-than"}


async def test_error_response_truncates_repeated_input(client: httpx.AsyncClient) -> None:
    error = problem(await client.post(VOLUMES, json={f"{n}" * 500: "x" for n in range(50)}), 422, "invalid")

    assert len(error["errors"]) <= 20
    assert len(json.dumps(error)) < 10_000
