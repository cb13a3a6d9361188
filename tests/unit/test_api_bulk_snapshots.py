"""Routes of bulk snapshots: the request and the ledger."""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from pydantic import ValidationError

from api.schemas.bulk import ScheduledSnapshotIn
from api.schemas.schedules import validated_params
from domain.bulk.model import Item, ItemStatus
from domain.bulk.requests import Selection
from domain.bulk.snapshot import BulkSnapshotRequest
from domain.snapshots.retention import RetentionRule
from tests.unit.fakes import FakeServices, job_row

SNAPSHOTS = "/api/v1/volumes/snapshots"


async def test_every_member_reaches_the_domain_request(fake: FakeServices, client: httpx.AsyncClient) -> None:
    one = uuid4()
    body = {"name": "n", "ids": [str(one)], "labels": {"team": "search"}, "backend": "memory", "max_concurrent": 7}
    response = await client.post(SNAPSHOTS, json=body)

    assert (response.status_code, response.json()["kind"]) == (202, "bulk.snapshot"), response.text
    assert response.headers["location"] == f"/api/v1/jobs/{response.json()['id']}"
    selection = Selection((one,), {"team": "search"}, "memory")
    assert fake.bulk.requests == [BulkSnapshotRequest("n", selection=selection, max_concurrent=7)]


async def test_defaults_select_all_volumes_ten_at_once(fake: FakeServices, client: httpx.AsyncClient) -> None:
    assert (await client.post(SNAPSHOTS, json={"name": "n"})).status_code == 202

    assert fake.bulk.requests == [BulkSnapshotRequest("n", selection=Selection(), max_concurrent=10)]


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "name"),
    ({"name": ""}, "name"),
    ({"name": None}, "name"),
    ({"name": "a b"}, "name"),
    ({"name": "-a"}, "name"),
    ({"name": "n" * 109}, "name"),
    ({"name": "n", "max_concurrent": 0}, "max_concurrent"),
    ({"name": "n", "max_concurrent": 101}, "max_concurrent"),
    ({"name": "n", "ids": ["one"]}, "ids.0"),
    ({"name": "n", "ids": [str(UUID(int=1))] * 2}, "ids"),
    ({"name": "n", "backend": ""}, "backend"),
    ({"name": "n", "keep_last": 3}, "keep_last"),
    ({"name": "n", "keep_days": 3}, "keep_days"),
    ({"name": "n", "percent": 3}, "percent"),
]


@pytest.mark.parametrize(("body", "field"), BAD, ids=lambda value: repr(value)[:40])
async def test_invalid_member_is_rejected_with_its_path(
    fake: FakeServices, client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    response = await client.post(SNAPSHOTS, json=body)

    assert (response.status_code, response.json()["code"]) == (422, "invalid"), response.text
    assert [error["field"] for error in response.json()["errors"]] == [field]
    assert fake.bulk.requests == []


async def test_unknown_backend_is_rejected(fake: FakeServices, client: httpx.AsyncClient) -> None:
    response = await client.post(SNAPSHOTS, json={"name": "n", "backend": "tape"})

    assert (response.status_code, response.json()["code"]) == (422, "unknown-backend")
    assert fake.bulk.requests == []


async def test_repeated_idempotency_key_returns_the_same_job(fake: FakeServices, client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "tonight"}
    responses = [await client.post(SNAPSHOTS, json={"name": "n"}, headers=key) for _ in range(2)]

    assert [response.status_code for response in responses] == [202, 202]
    assert responses[0].json()["id"] == responses[1].json()["id"]
    assert len(fake.bulk.requests) == 1


async def test_item_has_the_id_of_its_snapshot(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job, snapshot_id = fake.jobs.add(job_row("bulk.snapshot")), uuid4()
    row = Item(volume_id=uuid4(), status=ItemStatus.SUCCEEDED, code="snapshotted", snapshot_id=snapshot_id)
    fake.bulk.ledger[job.id] = [row]
    (item,) = (await client.get(f"/api/v1/jobs/{job.id}/items")).json()["items"]

    assert (item["code"], item["snapshot_id"]) == ("snapshotted", str(snapshot_id))


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
async def test_snapshots_is_not_a_volume_id(client: httpx.AsyncClient, method: str) -> None:
    response = await client.request(method, SNAPSHOTS, json={})

    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_schedule_params_accept_retention_rules() -> None:
    params = {"name": "nightly", "keep_last": 3, "keep_days": 7, "labels": {"team": "search"}}

    assert BulkSnapshotRequest.from_request(validated_params("bulk.snapshot", params)) == BulkSnapshotRequest(
        "nightly", selection=Selection(labels={"team": "search"}), keep=RetentionRule(3, 7)
    )


@pytest.mark.parametrize("rule", ["keep_last", "keep_days"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, None, 36_501])
def test_invalid_retention_rule_is_rejected_with_its_name(rule: str, value: object) -> None:
    with pytest.raises(ValidationError) as raised:
        ScheduledSnapshotIn.model_validate({"name": "nightly", rule: value})

    assert [error["loc"] for error in raised.value.errors()] == [(rule,)]
