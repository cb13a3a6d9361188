"""Routes of bulk expansions: the request, the plan of a dry run, and the ledger."""

import json
from typing import Any
from unittest.mock import AsyncMock
from uuid import UUID, uuid4

import httpx
import pytest

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy, VolumePolicies
from domain.bulk.model import Item, ItemStatus
from domain.bulk.requests import Selection
from domain.errors import TooManyDryRuns
from tests.unit.fakes import FakeServices, job_row, volume_row

EXPAND = "/api/v1/volumes/expand"
MIB = 2**20


def fields(response: httpx.Response) -> list[str]:
    return [error["field"] for error in response.json()["errors"]]


async def test_every_member_reaches_the_domain_request(fake: FakeServices, client: httpx.AsyncClient) -> None:
    one, two = uuid4(), uuid4()
    body = {
        "percent": 20,
        "step": "1GiB",
        "up_to": "1TiB",
        "ids": [str(one), str(two)],
        "labels": {"team": "search"},
        "backend": "memory",
        "usage_above": 80,
        "max_concurrent": 7,
    }
    response = await client.post(EXPAND, json=body)

    assert (response.status_code, response.json()["kind"]) == (202, "bulk.expand"), response.text
    assert response.headers["location"] == f"/api/v1/jobs/{response.json()['id']}"
    policy = GrowthPolicy(percent=20, step=2**30, up_to=2**40, usage_above=80)
    selection = Selection((one, two), {"team": "search"}, "memory")
    assert fake.bulk.requests == [BulkExpandRequest(policy, selection=selection, max_concurrent=7)]


async def test_defaults_select_all_volumes_ten_at_once(fake: FakeServices, client: httpx.AsyncClient) -> None:
    assert (await client.post(EXPAND, json={"by": "1GiB"})).status_code == 202

    assert fake.bulk.requests == [BulkExpandRequest(GrowthPolicy(by=2**30), selection=Selection(), max_concurrent=10)]


async def test_policy_autogrow_requests_the_policies_of_the_volumes(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    response = await client.post(EXPAND, json={"policy": "autogrow", "labels": {"a": "b"}, "max_concurrent": 3})

    assert (response.status_code, response.json()["params"]["policy"]) == (202, "autogrow"), response.text
    selection = Selection(labels={"a": "b"})
    assert fake.bulk.requests == [BulkExpandRequest(VolumePolicies(), selection=selection, max_concurrent=3)]


@pytest.mark.parametrize(
    "member", [{"to": 2}, {"by": 1}, {"percent": 1}, {"step": MIB}, {"up_to": "1GiB"}, {"usage_above": 80}], ids=repr
)
async def test_policy_cannot_be_combined_with_members_that_it_replaces(
    fake: FakeServices, client: httpx.AsyncClient, member: dict[str, Any]
) -> None:
    response = await client.post(EXPAND, json=member | {"policy": "autogrow"})

    (name,) = member
    assert (response.status_code, response.json()["code"], fields(response)) == (422, "invalid", [name])
    assert "`policy`" in response.json()["errors"][0]["detail"]
    assert fake.bulk.requests == []


async def test_dry_run_applies_the_policy_of_each_volume(fake: FakeServices, client: httpx.AsyncClient) -> None:
    policy = {"usage_above": 80, "by": MIB, "up_to": 10 * MIB}
    grows = fake.volumes.add(volume_row("a", size=MIB, used=MIB, autogrow=policy))
    stays = fake.volumes.add(volume_row("b", size=MIB, used=MIB))
    plan = (await client.post(EXPAND, json={"policy": "autogrow", "dry_run": True})).json()

    planned = {item["volume_id"]: (item["to_size"], item["code"]) for item in plan["items"]}
    assert planned == {str(grows.id): (2 * MIB, None), str(stays.id): (None, "no-policy")}
    assert fake.bulk.requests == []


@pytest.mark.parametrize("content", [b"", b"{}", b'{"labels": {"team": "search"}, "dry_run": true}'])
async def test_missing_growth_error_lists_the_choices(
    fake: FakeServices, client: httpx.AsyncClient, content: bytes
) -> None:
    headers = {"Content-Type": "application/json"} if content else {}
    response = await client.post(EXPAND, content=content, headers=headers)

    assert (response.status_code, response.json()["code"]) == (422, "growth-required")
    assert all(choice in response.json()["detail"] for choice in ("`to`", "`by`", "`percent`", "`policy`"))
    assert fake.bulk.requests == []


BAD: list[tuple[dict[str, Any], str]] = [
    ({"by": 1, "percent": 1}, "percent"),
    ({"to": 1, "by": 1}, "by"),
    ({"by": 0}, "by"),
    ({"by": -1}, "by"),
    ({"by": "-1GiB"}, "by"),
    ({"by": None}, "by"),
    ({"to": 0}, "to"),
    ({"percent": 0}, "percent"),
    ({"percent": -5}, "percent"),
    ({"percent": 10_001}, "percent"),
    ({"percent": "10"}, "percent"),
    ({"by": 1, "step": 0}, "step"),
    ({"by": 1, "step": None}, "step"),
    ({"by": 1, "up_to": "65TiB"}, "up_to"),
    ({"by": 1, "up_to": 4095}, "up_to"),
    ({"by": 1, "usage_above": -1}, "usage_above"),
    ({"by": 1, "usage_above": 100.1}, "usage_above"),
    ({"by": 1, "max_concurrent": 0}, "max_concurrent"),
    ({"by": 1, "max_concurrent": 101}, "max_concurrent"),
    ({"by": 1, "max_concurrent": 10**9}, "max_concurrent"),
    ({"by": 1, "max_concurrent": "3"}, "max_concurrent"),
    ({"by": 1, "ids": [str(UUID(int=1))] * 2}, "ids"),
    ({"by": 1, "ids": [str(UUID(int=number)) for number in range(10_001)]}, "ids"),
    ({"by": 1, "ids": ["one"]}, "ids.0"),
    ({"by": 1, "ids": None}, "ids"),
    ({"by": 1, "labels": {"a b": "c"}}, "labels.a b.[key]"),
    ({"by": 1, "backend": ""}, "backend"),
    ({"by": 1, "dry_run": "yes"}, "dry_run"),
    ({"by": 1, "dryrun": True}, "dryrun"),
    ({"policy": "nightly"}, "policy"),
    ({"policy": None}, "policy"),
    ({"policy": {"by": 1}}, "policy"),
]


@pytest.mark.parametrize(("body", "field"), BAD, ids=lambda value: repr(value)[:40])
async def test_invalid_member_is_rejected_with_its_path(
    fake: FakeServices, client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    response = await client.post(EXPAND, content=json.dumps(body), headers={"Content-Type": "application/json"})

    assert (response.status_code, response.json()["code"]) == (422, "invalid"), response.text
    assert fields(response) == [field]
    assert fake.bulk.requests == []


@pytest.mark.parametrize("dry_run", [False, True])
async def test_unknown_backend_is_rejected(client: httpx.AsyncClient, *, dry_run: bool) -> None:
    response = await client.post(EXPAND, json={"by": 1, "backend": "tape", "dry_run": dry_run})

    assert (response.status_code, response.json()["code"], fields(response)) == (422, "unknown-backend", ["backend"])


async def test_ten_thousand_ids_are_accepted(fake: FakeServices, client: httpx.AsyncClient) -> None:
    ids = [UUID(int=number) for number in range(10_000)]
    response = await client.post(EXPAND, json={"by": 1, "ids": [str(one) for one in ids]})

    assert response.status_code == 202
    assert fake.bulk.requests[0].selection.ids == tuple(ids)


async def test_empty_id_list_selects_no_volume(fake: FakeServices, client: httpx.AsyncClient) -> None:
    assert (await client.post(EXPAND, json={"by": 1, "ids": []})).status_code == 202
    assert fake.bulk.requests[0].selection.ids == ()


async def test_dry_run_returns_the_plan_and_creates_no_job(fake: FakeServices, client: httpx.AsyncClient) -> None:
    grows, stays = fake.volumes.add(volume_row("a", size=MIB)), fake.volumes.add(volume_row("b", size=2 * MIB))
    response = await client.post(EXPAND, json={"to": 2 * MIB, "dry_run": True})

    plan = response.json()
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert (plan["total"], plan["grows"], plan["bytes"], plan["measured_at"], plan["truncated"]) == (
        *(2, 1, MIB),
        None,
        False,
    )
    planned = {item["volume_id"]: (item["from_size"], item["to_size"], item["code"]) for item in plan["items"]}
    assert planned == {str(grows.id): (MIB, 2 * MIB, None), str(stays.id): (2 * MIB, None, "already-large-enough")}
    assert fake.bulk.requests == []
    assert not fake.jobs.rows


async def test_long_plan_is_truncated_and_marked(fake: FakeServices, client: httpx.AsyncClient) -> None:
    for number in range(1001):
        fake.volumes.add(volume_row(f"v{number}"))
    plan = (await client.post(EXPAND, json={"by": 1, "dry_run": True})).json()

    assert (plan["total"], len(plan["items"]), plan["truncated"]) == (1001, 1000, True)


def item(number: int, status: ItemStatus, **columns: Any) -> Item:
    return Item(volume_id=UUID(int=number), status=status, **columns)


async def test_ledger_pages_ascend_by_volume_id(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job, other = fake.jobs.add(job_row("bulk.expand")), fake.jobs.add(job_row("bulk.expand"))
    fake.bulk.ledger[job.id] = [item(number, ItemStatus.SUCCEEDED, code="expanded") for number in (3, 1, 4, 2, 5)]

    pages: list[list[int]] = []
    cursor: str | None = ""
    first: str | None = None
    while cursor is not None:
        page = (await client.get(f"/api/v1/jobs/{job.id}/items?limit=2{cursor and '&cursor='}{cursor}")).json()
        pages.append([UUID(one["volume_id"]).int for one in page["items"]])
        cursor = page["next_cursor"]
        first = first or cursor

    assert pages == [[1, 2], [3, 4], [5]]
    response = await client.get(f"/api/v1/jobs/{other.id}/items?cursor={first}")
    assert (response.status_code, response.json()["code"]) == (422, "bad-cursor")
    response = await client.get(f"/api/v1/jobs/{job.id}/items?status=failed&cursor={first}")
    assert response.json()["code"] == "bad-cursor"


async def test_item_has_status_code_and_sizes(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row("bulk.expand"))
    fake.volumes.add(volume_row("data", id=UUID(int=2)))
    failed = item(2, ItemStatus.FAILED, code="storage-full", detail="Full.", from_size=1, to_size=2, used=1)
    fake.bulk.ledger[job.id] = [item(1, ItemStatus.SUCCEEDED), failed]
    page = (await client.get(f"/api/v1/jobs/{job.id}/items?status=failed")).json()

    members = {"code": "storage-full", "detail": "Full.", "from_size": 1, "to_size": 2, "used": 1, "snapshot_id": None}
    assert page == {
        "items": [{"volume_id": str(UUID(int=2)), "volume_name": "data", "status": "failed"} | members],
        "next_cursor": None,
    }


@pytest.mark.parametrize(
    ("query", "status", "code"), [("status=done", 422, "invalid"), ("colour=blue", 422, "invalid"), ("", 404, "")]
)
async def test_ledger_request_is_rejected(client: httpx.AsyncClient, query: str, status: int, code: str) -> None:
    response = await client.get(f"/api/v1/jobs/{UUID(int=7)}/items?{query}")

    assert (response.status_code, response.json()["code"]) == (status, code or "job-not-found")


async def test_lane_of_a_bulk_job_cannot_be_cancelled(fake: FakeServices, client: httpx.AsyncClient) -> None:
    bulk = fake.jobs.add(job_row("bulk.expand"))
    lane = fake.jobs.add(job_row("bulk.lane", parent_id=bulk.id))
    response = await client.post(f"/api/v1/jobs/{lane.id}/cancel")

    assert (response.status_code, response.json()["code"], response.json()["job_id"]) == (
        409,
        "child-job",
        str(bulk.id),
    )


async def test_snapshot_job_reports_progress_in_bytes(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row("snapshot.take", total=MIB, succeeded=1024))

    progress = (await client.get(f"/api/v1/jobs/{job.id}")).json()["progress"]
    assert (progress["unit"], progress["total"], progress["succeeded"]) == ("bytes", MIB, 1024)


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
async def test_expand_is_not_a_volume_id(client: httpx.AsyncClient, version: str, method: str) -> None:
    response = await client.request(method, f"/api/{version}/volumes/expand", json={})

    assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_dry_run_that_is_refused_says_when_to_try_again(
    fake: FakeServices, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake.bulk, "preview", AsyncMock(side_effect=TooManyDryRuns))
    response = await client.post(EXPAND, json={"by": 1, "dry_run": True})

    assert (response.status_code, response.json()["code"]) == (429, "too-many-dry-runs")
    assert response.headers["Retry-After"] == "1"
