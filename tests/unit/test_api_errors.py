"""Bad input gets problem+json with a stable code and changes nothing."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from domain.volumes.model import MAX_SIZE
from domain.volumes.states import VolumeState
from tests.unit.fakes import FakeServices, job_row, volume_row

VOLUMES = "/api/v1/volumes"


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    told: dict[str, Any] = answer.json()
    assert (told["code"], told["status"], told["type"]) == (code, status, f"/problems/{code}")
    assert told["title"]
    assert told["detail"]
    assert told["request_id"] == answer.headers["x-request-id"]
    return told


def fields(told: dict[str, Any]) -> list[str]:
    return [error["field"] for error in told["errors"]]


BAD_NAMES: list[Any] = [
    "",
    "a/b",
    "../etc",
    ".",
    "a.b",
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
async def test_a_bad_name_is_refused(fake: FakeServices, client: httpx.AsyncClient, name: object) -> None:
    body = json.dumps({"name": name, "size": 1})  # with \\u escapes, as httpx would refuse half a surrogate pair
    answer = await client.post(VOLUMES, content=body, headers={"Content-Type": "application/json"})

    assert fields(problem(answer, 422, "invalid")) == ["name"]
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
async def test_a_bad_size_is_refused(fake: FakeServices, client: httpx.AsyncClient, size: object) -> None:
    body = json.dumps({"name": "a", "size": size})
    answer = await client.post(VOLUMES, content=body, headers={"Content-Type": "application/json"})

    assert fields(problem(answer, 422, "invalid")) == ["size"]
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
async def test_a_bad_member_is_refused_by_name(
    fake: FakeServices, client: httpx.AsyncClient, method: str, member: dict[str, Any]
) -> None:
    volume = fake.volumes.add(volume_row())
    address, plain = (VOLUMES, {"name": "b", "size": 1}) if method == "POST" else (f"{VOLUMES}/{volume.id}", {})
    answer = await client.request(
        method, address, content=json.dumps(plain | member), headers={"Content-Type": "application/json"}
    )

    (name,) = member
    assert fields(problem(answer, 422, "invalid"))[0].startswith(name)
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
async def test_a_bad_growth_is_refused(fake: FakeServices, client: httpx.AsyncClient, growth: dict[str, Any]) -> None:
    volume = fake.volumes.add(volume_row())
    answer = await client.post(
        f"{VOLUMES}/{volume.id}/expand", content=json.dumps(growth), headers={"Content-Type": "application/json"}
    )

    problem(answer, 422, "invalid")
    assert volume.state is VolumeState.AVAILABLE


async def test_an_empty_growth_is_told_its_choices(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row())
    told = problem(await client.post(f"{VOLUMES}/{volume.id}/expand", json={}), 422, "growth-required")

    assert all(choice in told["detail"] for choice in ("`to`", "`by`", "`percent`"))


async def test_shrinking_is_refused_with_the_present_size(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row(size=1024))
    told = problem(await client.post(f"{VOLUMES}/{volume.id}/expand", json={"to": 1023}), 422, "shrink-refused")

    assert (told["size"], fields(told)) == (1024, ["to"])
    assert volume.state is VolumeState.AVAILABLE


async def test_growing_past_the_limit_is_refused(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row(size=1024))
    told = problem(await client.post(f"{VOLUMES}/{volume.id}/expand", json={"by": "64TiB"}), 422, "size-limit-exceeded")

    assert told["limit"] == MAX_SIZE


async def test_a_busy_volume_names_the_job_that_has_it(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job_id = uuid4()
    volume = fake.volumes.add(volume_row(state=VolumeState.EXPANDING, job_id=job_id))

    for answer in (
        await client.post(f"{VOLUMES}/{volume.id}/expand", json={"by": 1}),
        await client.delete(f"{VOLUMES}/{volume.id}"),
    ):
        assert problem(answer, 409, "volume-busy")["job_id"] == str(job_id)


async def test_a_volume_in_error_cannot_grow(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row(state=VolumeState.ERROR))

    problem(await client.post(f"{VOLUMES}/{volume.id}/expand", json={"by": 1}), 409, "volume-unusable")


async def test_a_name_is_taken_once(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.volumes.add(volume_row("one"))
    other = fake.volumes.add(volume_row("two"))

    problem(await client.post(VOLUMES, json={"name": "one", "size": 1}), 409, "name-taken")
    problem(await client.patch(f"{VOLUMES}/{other.id}", json={"name": "one"}), 409, "name-taken")
    assert (len(fake.volumes.rows), other.name) == (2, "two")


async def test_an_unknown_backend_is_refused_by_name(fake: FakeServices, client: httpx.AsyncClient) -> None:
    answer = await client.post(VOLUMES, json={"name": "a", "size": 1, "backend": "tape"})

    assert fields(problem(answer, 422, "unknown-backend")) == ["backend"]
    assert not fake.volumes.rows


UNKNOWN = UUID("00000000-0000-7000-8000-000000000000")


@pytest.mark.parametrize(
    ("method", "address", "code"),
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
        ("GET", "/", "not-found"),
    ],
)
async def test_what_is_not_there_is_not_found(client: httpx.AsyncClient, method: str, address: str, code: str) -> None:
    body = {"by": 1} if address.endswith("expand") else {}
    told = problem(await client.request(method, address, json=body), 404, code)

    assert told["instance"] == address


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_an_id_that_is_none_is_refused_by_name(client: httpx.AsyncClient, method: str) -> None:
    answer = await client.request(method, f"{VOLUMES}/not-an-id", json={})

    assert fields(problem(answer, 422, "invalid")) == ["volume_id"]


async def test_a_wrong_method_is_told_the_right_ones(client: httpx.AsyncClient) -> None:
    answer = await client.put(VOLUMES, json={})
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET, POST"

    answer = await client.post(f"{VOLUMES}/{UNKNOWN}", json={})
    assert answer.headers["allow"] == "DELETE, GET, PATCH"


@pytest.mark.parametrize(
    "body", [b"{", b"{'name': 1}", b"\xff", b'{"name": "\xff"}', b"[" * 100_000, b'{"size": ' + b"9" * 5000 + b"}"]
)
async def test_broken_json_is_called_so(fake: FakeServices, client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post(VOLUMES, content=body, headers={"Content-Type": "application/json"})

    problem(answer, 400, "malformed-json")
    assert not fake.volumes.rows


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"5", b'"name"'])
async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post(VOLUMES, content=body, headers={"Content-Type": "application/json"})

    assert fields(problem(answer, 422, "invalid")) == ["body"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "json"])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_body_that_does_not_claim_to_be_json_is_refused(
    fake: FakeServices, client: httpx.AsyncClient, method: str, kind: str | None
) -> None:
    address = VOLUMES if method == "POST" else f"{VOLUMES}/{fake.volumes.add(volume_row()).id}"
    headers = {"Content-Type": kind} if kind else {}
    answer = await client.request(method, address, content=b'{"name": "a", "size": 1}', headers=headers)

    problem(answer, 415, "unsupported-media-type")
    assert not fake.jobs.rows


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"]
)
async def test_json_may_be_called_by_any_of_its_names(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post(VOLUMES, content=b'{"name": "a", "size": 1}', headers={"Content-Type": kind})

    assert answer.status_code == 202


async def test_a_body_of_more_than_a_mebibyte_is_refused(fake: FakeServices, client: httpx.AsyncClient) -> None:
    async def unannounced() -> AsyncIterator[bytes]:
        for _ in range(2**8 + 1):
            yield b" " * 2**12

    headers = {"Content-Type": "application/json"}

    problem(await client.post(VOLUMES, content=b" " * (2**20 + 1), headers=headers), 413, "content-too-large")
    problem(await client.post(VOLUMES, content=unannounced(), headers=headers), 413, "content-too-large")
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
        "name=a.b",
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
async def test_a_filter_that_means_nothing_is_refused_by_name(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"{VOLUMES}?{query}")

    assert fields(problem(answer, 422, "invalid"))[0].startswith(query.partition("=")[0])


@pytest.mark.parametrize(
    "query", ["status=done", "kind=%00", "kind=Volume", "volume_id=5", "parent_id=", "state=error"]
)
async def test_a_job_filter_that_means_nothing_is_refused_by_name(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"/api/v1/jobs?{query}")

    assert fields(problem(answer, 422, "invalid")) == [query.partition("=")[0]]


@pytest.mark.parametrize(
    "address",
    [f"{VOLUMES}/{UNKNOWN}", f"/api/v1/jobs/{UNKNOWN}", "/api/v1/backends", "/healthz", "/readyz", "/problems"],
)
async def test_a_route_without_parameters_takes_none(client: httpx.AsyncClient, address: str) -> None:
    assert fields(problem(await client.get(f"{address}?verbose=1"), 422, "invalid")) == ["verbose"]


@pytest.mark.parametrize("cursor", ["", "x", "ä", "%00", "AAAA", "A" * 5000, "A" * 32])
async def test_a_cursor_that_nobody_gave_out_is_refused(client: httpx.AsyncClient, cursor: str) -> None:
    assert fields(problem(await client.get(f"{VOLUMES}?cursor={cursor}"), 422, "bad-cursor")) == ["cursor"]


async def test_a_cursor_fits_only_its_own_list_and_filters(fake: FakeServices, client: httpx.AsyncClient) -> None:
    for name in "abc":
        fake.volumes.add(volume_row(name, labels={"team": "search"}))
        fake.jobs.add(job_row())
    cursor = (await client.get(f"{VOLUMES}?limit=1")).json()["next_cursor"]

    assert (await client.get(f"{VOLUMES}?limit=2&cursor={cursor}")).status_code == 200
    problem(await client.get(f"/api/v1/jobs?cursor={cursor}"), 422, "bad-cursor")
    problem(await client.get(f"{VOLUMES}?cursor={cursor}&state=available"), 422, "bad-cursor")
    problem(await client.get(f"{VOLUMES}?cursor={cursor}&label=team:search"), 422, "bad-cursor")


async def test_many_faults_are_told_together(client: httpx.AsyncClient) -> None:
    told = problem(await client.post(VOLUMES, json={"size": 0, "colour": "blue"}), 422, "invalid")

    assert sorted(fields(told)) == ["colour", "name", "size"]
    assert {error["code"] for error in told["errors"]} == {"missing", "extra-forbidden", "greater-than"}


async def test_a_client_does_not_hear_its_own_noise_again(client: httpx.AsyncClient) -> None:
    told = problem(await client.post(VOLUMES, json={f"{n}" * 10_000: "x" for n in range(50)}), 422, "invalid")

    assert len(told["errors"]) <= 20
    assert len(json.dumps(told)) < 10_000
