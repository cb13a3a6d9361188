"""`Idempotency-Key`: a repeated request gets the first response; another request with the key is rejected."""

from typing import Any

import httpx
import pytest

from domain.access.model import Role
from domain.jobs.states import JobStatus
from tests.unit.fake_keys import bearer
from tests.unit.fakes import NOON, FakeServices, job_row, snapshot_row, volume_row

VOLUMES = "/api/v1/volumes"
KEY = {"Idempotency-Key": "nightly-2026-01-31"}


async def test_repeated_request_gets_the_first_response(fake: FakeServices, client: httpx.AsyncClient) -> None:
    body = {"name": "a", "size": 1}
    first = await client.post(VOLUMES, json=body, headers=KEY)
    fake.jobs.rows.popitem()[1].status = JobStatus.FAILED  # the replay does not depend on the present state
    again = await client.post(VOLUMES, json=body, headers=KEY | {"Prefer": "wait=30"})

    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    for header in ("location", "retry-after", "content-type"):
        assert again.headers[header] == first.headers[header]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert fake.watcher.waits == []
    assert len(fake.volumes.rows) == 1


def requests(fake: FakeServices) -> dict[str, tuple[str, str, Any]]:
    """Return a request for every route that creates a job: method, path, body."""
    available, ready = fake.volumes.add(volume_row("one")), fake.volumes.add(volume_row("two"))
    gone = fake.volumes.add(volume_row("three"))
    kept, other = fake.snapshots.add(snapshot_row(ready)), fake.snapshots.add(snapshot_row(ready))
    live, ended = fake.jobs.add(job_row()), fake.jobs.add(job_row(status=JobStatus.FAILED, finished_at=NOON))
    return {
        "create": ("POST", VOLUMES, {"name": "a", "size": 1}),
        "clone": ("POST", VOLUMES, {"name": "b", "from_snapshot": str(kept.id)}),
        "expand": ("POST", f"{VOLUMES}/{available.id}/expand", {"by": 1}),
        "bulk": ("POST", f"{VOLUMES}/expand", {"by": 1}),
        "take": ("POST", f"{VOLUMES}/{ready.id}/snapshots", {"name": "a"}),
        "delete": ("DELETE", f"{VOLUMES}/{gone.id}", None),
        "restore": ("POST", f"/api/v1/snapshots/{other.id}/restore", None),
        "delete snapshot": ("DELETE", f"/api/v1/snapshots/{other.id}", None),
        "cancel": ("POST", f"/api/v1/jobs/{live.id}/cancel", None),
        "retry": ("POST", f"/api/v1/jobs/{ended.id}/retry", None),
    }


ROUTES = ["create", "clone", "expand", "bulk", "take", "delete", "restore", "delete snapshot", "cancel", "retry"]


@pytest.mark.parametrize("route", ROUTES)
async def test_every_route_that_creates_a_job_supports_the_key(
    fake: FakeServices, client: httpx.AsyncClient, route: str
) -> None:
    method, path, body = requests(fake)[route]
    first, again = [await client.request(method, path, json=body, headers=KEY) for _ in range(2)]

    assert (first.status_code, again.status_code) == (202, 202), first.text
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"


async def test_bodies_with_equal_meaning_are_the_same_request(client: httpx.AsyncClient) -> None:
    headers = KEY | {"Content-Type": "application/json"}
    first = await client.post(VOLUMES, content=b'{"name": "a", "size": 1}', headers=headers)
    again = await client.post(VOLUMES, content=b'{ "size":1,\n"name":"a" }', headers=headers)

    assert again.json() == first.json()


async def test_other_request_with_the_same_key_is_rejected(fake: FakeServices, client: httpx.AsyncClient) -> None:
    one, two = fake.volumes.add(volume_row("one")), fake.volumes.add(volume_row("two"))
    assert (await client.post(f"{VOLUMES}/{one.id}/expand", json={"by": 1}, headers=KEY)).status_code == 202

    for path, body in (
        (f"{VOLUMES}/{one.id}/expand", {"by": 2}),
        (f"{VOLUMES}/{two.id}/expand", {"by": 1}),
        (VOLUMES, {"name": "a", "size": 1}),
        (f"/api/v0/volumes/{one.id}/expand", {"by": 1}),
    ):
        response = await client.post(path, json=body, headers=KEY)
        assert (response.status_code, response.json()["code"]) == (422, "idempotency-key-reused")
        assert response.json()["errors"][0]["field"] == "Idempotency-Key"


async def test_keys_are_scoped_by_user(client: httpx.AsyncClient) -> None:
    responses = [
        await client.post(VOLUMES, json={"name": role.value, "size": 1}, headers=KEY | bearer(role))
        for role in (Role.OPERATOR, Role.OWNER)
    ]

    assert [response.status_code for response in responses] == [202, 202]


async def test_rejected_request_does_not_consume_its_key(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.volumes.add(volume_row("a"))
    assert (await client.post(VOLUMES, json={"name": "a", "size": 1}, headers=KEY)).status_code == 409

    response = await client.post(VOLUMES, json={"name": "b", "size": 1}, headers=KEY)
    assert (response.status_code, "idempotency-replayed" in response.headers) == (202, False)


@pytest.mark.parametrize("key", ["a", "~", "a b", "a" * 255, '"quoted"'])
async def test_printable_key_is_accepted(client: httpx.AsyncClient, key: str) -> None:
    response = await client.post(VOLUMES, json={"name": "a", "size": 1}, headers={"Idempotency-Key": key})

    assert response.status_code == 202


@pytest.mark.parametrize("key", ["", " ", "a" * 256, "a\tb", "é"])
async def test_malformed_key_is_rejected_with_its_header_name(
    fake: FakeServices, client: httpx.AsyncClient, key: str
) -> None:
    headers = httpx.Headers([(b"Idempotency-Key", key.encode())])
    response = await client.post(VOLUMES, json={"name": "a", "size": 1}, headers=headers)

    assert (response.status_code, response.json()["code"]) == (422, "invalid")
    assert [error["field"] for error in response.json()["errors"]] == ["Idempotency-Key"]
    assert not fake.volumes.rows
