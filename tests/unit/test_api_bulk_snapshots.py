"""Bulk snapshots over HTTP: how they are asked for, and what their ledger shows."""

from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from pydantic import ValidationError

from api.schemas.bulk_snapshots import ScheduledSnapshotIn
from api.schemas.schedules import validated_params
from domain.bulk.model import Item
from domain.bulk.selection import Selection
from domain.bulk.snapshot.request import BulkSnapshotRequest
from domain.bulk.states import ItemStatus
from domain.snapshots.retention import RetentionRule
from tests.unit.fakes import FakeServices, job_row

SNAPSHOTS = "/api/v1/volumes/snapshots"


async def test_every_wish_reaches_the_domain(fake: FakeServices, client: httpx.AsyncClient) -> None:
    one = uuid4()
    body = {"name": "n", "ids": [str(one)], "labels": {"team": "search"}, "backend": "memory", "max_concurrent": 7}
    answer = await client.post(SNAPSHOTS, json=body)

    assert (answer.status_code, answer.json()["kind"]) == (202, "bulk.snapshot"), answer.text
    assert answer.headers["location"] == f"/api/v1/jobs/{answer.json()['id']}"
    assert fake.bulk_snapshots.asked == [BulkSnapshotRequest("n", Selection((one,), {"team": "search"}, "memory"), 7)]


async def test_what_is_not_said_is_the_whole_fleet_ten_at_once(fake: FakeServices, client: httpx.AsyncClient) -> None:
    assert (await client.post(SNAPSHOTS, json={"name": "n"})).status_code == 202

    assert fake.bulk_snapshots.asked == [BulkSnapshotRequest("n", Selection(), 10)]


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
async def test_a_bad_wish_is_refused_by_name(
    fake: FakeServices, client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    answer = await client.post(SNAPSHOTS, json=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert fake.bulk_snapshots.asked == []


async def test_an_unknown_backend_is_refused(fake: FakeServices, client: httpx.AsyncClient) -> None:
    answer = await client.post(SNAPSHOTS, json={"name": "n", "backend": "tape"})

    assert (answer.status_code, answer.json()["code"]) == (422, "unknown-backend")
    assert fake.bulk_snapshots.asked == []


async def test_the_same_key_is_the_same_job(fake: FakeServices, client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "tonight"}
    answers = [await client.post(SNAPSHOTS, json={"name": "n"}, headers=key) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert len(fake.bulk_snapshots.asked) == 1


async def test_an_item_names_its_snapshot(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job, snapshot_id = fake.jobs.add(job_row("bulk.snapshot")), uuid4()
    done = Item(volume_id=uuid4(), status=ItemStatus.SUCCEEDED, code="snapshotted", snapshot_id=snapshot_id)
    fake.bulk.ledger[job.id] = [done]
    (shown,) = (await client.get(f"/api/v1/jobs/{job.id}/items")).json()["items"]

    assert (shown["code"], shown["snapshot_id"]) == ("snapshotted", str(snapshot_id))


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
async def test_snapshots_is_no_volume(client: httpx.AsyncClient, method: str) -> None:
    answer = await client.request(method, SNAPSHOTS, json={})

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_schedule_may_say_what_it_keeps() -> None:
    said = {"name": "nightly", "keep_last": 3, "keep_days": 7, "labels": {"team": "search"}}

    assert BulkSnapshotRequest.from_request(validated_params("bulk.snapshot", said)) == BulkSnapshotRequest(
        "nightly", Selection(labels={"team": "search"}), keep=RetentionRule(3, 7)
    )


@pytest.mark.parametrize("rule", ["keep_last", "keep_days"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, None, 36_501])
def test_a_rule_that_makes_no_sense_is_refused_by_name(rule: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        ScheduledSnapshotIn.model_validate({"name": "nightly", rule: value})

    assert [error["loc"] for error in refused.value.errors()] == [(rule,)]
