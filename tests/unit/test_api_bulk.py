"""Bulk expansion over HTTP: how it is asked for, its plan without doing it, and its ledger."""

import json
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from domain.bulk.expand.policy import BulkExpandRequest, GrowthPolicy, VolumePolicies
from domain.bulk.model import Item
from domain.bulk.selection import Selection
from domain.bulk.states import ItemStatus
from tests.unit.fakes import FakeServices, job_row, volume_row

EXPAND = "/api/v1/volumes/expand"
MIB = 2**20


def fields(answer: httpx.Response) -> list[str]:
    return [error["field"] for error in answer.json()["errors"]]


async def test_every_wish_reaches_the_domain(fake: FakeServices, client: httpx.AsyncClient) -> None:
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
    answer = await client.post(EXPAND, json=body)

    assert (answer.status_code, answer.json()["kind"]) == (202, "bulk.expand"), answer.text
    assert answer.headers["location"] == f"/api/v1/jobs/{answer.json()['id']}"
    policy = GrowthPolicy(percent=20, step=2**30, up_to=2**40, usage_above=80)
    assert fake.expansion.asked == [BulkExpandRequest(policy, Selection((one, two), {"team": "search"}, "memory"), 7)]


async def test_what_is_not_said_is_the_whole_fleet_ten_at_once(fake: FakeServices, client: httpx.AsyncClient) -> None:
    assert (await client.post(EXPAND, json={"by": "1GiB"})).status_code == 202

    assert fake.expansion.asked == [BulkExpandRequest(GrowthPolicy(by=2**30), Selection(), 10)]


async def test_the_volumes_own_policies_are_asked_for_by_name(fake: FakeServices, client: httpx.AsyncClient) -> None:
    answer = await client.post(EXPAND, json={"policy": "autogrow", "labels": {"a": "b"}, "max_concurrent": 3})

    assert (answer.status_code, answer.json()["params"]["policy"]) == (202, "autogrow"), answer.text
    assert fake.expansion.asked == [BulkExpandRequest(VolumePolicies(), Selection(labels={"a": "b"}), 3)]


@pytest.mark.parametrize(
    "said", [{"to": 2}, {"by": 1}, {"percent": 1}, {"step": MIB}, {"up_to": "1GiB"}, {"usage_above": 80}], ids=repr
)
async def test_a_policy_cannot_be_combined_with_what_it_says_itself(
    fake: FakeServices, client: httpx.AsyncClient, said: dict[str, Any]
) -> None:
    answer = await client.post(EXPAND, json=said | {"policy": "autogrow"})

    (name,) = said
    assert (answer.status_code, answer.json()["code"], fields(answer)) == (422, "invalid", [name])
    assert "`policy`" in answer.json()["errors"][0]["detail"]
    assert fake.expansion.asked == []


async def test_a_dry_run_asks_each_volumes_own_policy(fake: FakeServices, client: httpx.AsyncClient) -> None:
    own = {"usage_above": 80, "by": MIB, "up_to": 10 * MIB}
    grows = fake.volumes.add(volume_row("a", size=MIB, used=MIB, autogrow=own))
    stays = fake.volumes.add(volume_row("b", size=MIB, used=MIB))
    plan = (await client.post(EXPAND, json={"policy": "autogrow", "dry_run": True})).json()

    shown = {item["volume_id"]: (item["to_size"], item["code"]) for item in plan["items"]}
    assert shown == {str(grows.id): (2 * MIB, None), str(stays.id): (None, "no-policy")}
    assert fake.expansion.asked == []


@pytest.mark.parametrize("content", [b"", b"{}", b'{"labels": {"team": "search"}, "dry_run": true}'])
async def test_no_growth_is_told_its_choices(fake: FakeServices, client: httpx.AsyncClient, content: bytes) -> None:
    headers = {"Content-Type": "application/json"} if content else {}
    answer = await client.post(EXPAND, content=content, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (422, "growth-required")
    assert all(choice in answer.json()["detail"] for choice in ("`to`", "`by`", "`percent`", "`policy`"))
    assert fake.expansion.asked == []


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
async def test_a_bad_wish_is_refused_by_name(
    fake: FakeServices, client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    answer = await client.post(EXPAND, content=json.dumps(body), headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), answer.text
    assert fields(answer) == [field]
    assert fake.expansion.asked == []


@pytest.mark.parametrize("dry_run", [False, True])
async def test_an_unknown_backend_is_refused(client: httpx.AsyncClient, *, dry_run: bool) -> None:
    answer = await client.post(EXPAND, json={"by": 1, "backend": "tape", "dry_run": dry_run})

    assert (answer.status_code, answer.json()["code"], fields(answer)) == (422, "unknown-backend", ["backend"])


async def test_ten_thousand_ids_may_be_named(fake: FakeServices, client: httpx.AsyncClient) -> None:
    ids = [UUID(int=number) for number in range(10_000)]
    answer = await client.post(EXPAND, json={"by": 1, "ids": [str(one) for one in ids]})

    assert answer.status_code == 202
    assert fake.expansion.asked[0].selection.ids == tuple(ids)


async def test_no_id_is_no_volume(fake: FakeServices, client: httpx.AsyncClient) -> None:
    assert (await client.post(EXPAND, json={"by": 1, "ids": []})).status_code == 202
    assert fake.expansion.asked[0].selection.ids == ()


async def test_a_dry_run_is_answered_with_the_plan_and_nothing_is_asked_for(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    grows, stays = fake.volumes.add(volume_row("a", size=MIB)), fake.volumes.add(volume_row("b", size=2 * MIB))
    answer = await client.post(EXPAND, json={"to": 2 * MIB, "dry_run": True})

    plan = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert (plan["total"], plan["grows"], plan["bytes"], plan["measured_at"], plan["truncated"]) == (
        *(2, 1, MIB),
        None,
        False,
    )
    shown = {item["volume_id"]: (item["from_size"], item["to_size"], item["code"]) for item in plan["items"]}
    assert shown == {str(grows.id): (MIB, 2 * MIB, None), str(stays.id): (2 * MIB, None, "already-there")}
    assert fake.expansion.asked == []
    assert not fake.jobs.rows


async def test_a_long_plan_is_cut_and_says_so(fake: FakeServices, client: httpx.AsyncClient) -> None:
    for number in range(1001):
        fake.volumes.add(volume_row(f"v{number}"))
    plan = (await client.post(EXPAND, json={"by": 1, "dry_run": True})).json()

    assert (plan["total"], len(plan["items"]), plan["truncated"]) == (1001, 1000, True)


def item(number: int, status: ItemStatus, **columns: Any) -> Item:
    return Item(volume_id=UUID(int=number), status=status, **columns)


async def test_the_ledger_is_walked_upwards(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job, other = fake.jobs.add(job_row("bulk.expand")), fake.jobs.add(job_row("bulk.expand"))
    fake.bulk.ledger[job.id] = [item(number, ItemStatus.SUCCEEDED, code="expanded") for number in (3, 1, 4, 2, 5)]

    seen: list[list[int]] = []
    cursor: str | None = ""
    first: str | None = None
    while cursor is not None:
        page = (await client.get(f"/api/v1/jobs/{job.id}/items?limit=2{cursor and '&cursor='}{cursor}")).json()
        seen.append([UUID(one["volume_id"]).int for one in page["items"]])
        cursor = page["next_cursor"]
        first = first or cursor

    assert seen == [[1, 2], [3, 4], [5]]
    answer = await client.get(f"/api/v1/jobs/{other.id}/items?cursor={first}")
    assert (answer.status_code, answer.json()["code"]) == (422, "bad-cursor")
    answer = await client.get(f"/api/v1/jobs/{job.id}/items?status=failed&cursor={first}")
    assert answer.json()["code"] == "bad-cursor"


async def test_an_item_says_what_became_of_its_volume(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row("bulk.expand"))
    bad = item(2, ItemStatus.FAILED, code="storage-full", detail="Full.", from_size=1, to_size=2, used=1)
    fake.bulk.ledger[job.id] = [item(1, ItemStatus.SUCCEEDED), bad]
    page = (await client.get(f"/api/v1/jobs/{job.id}/items?status=failed")).json()

    told = {"code": "storage-full", "detail": "Full.", "from_size": 1, "to_size": 2, "used": 1, "snapshot_id": None}
    assert page == {"items": [{"volume_id": str(UUID(int=2)), "status": "failed"} | told], "next_cursor": None}


@pytest.mark.parametrize(
    ("query", "status", "code"), [("status=done", 422, "invalid"), ("colour=blue", 422, "invalid"), ("", 404, "")]
)
async def test_a_ledger_that_cannot_be_shown(client: httpx.AsyncClient, query: str, status: int, code: str) -> None:
    answer = await client.get(f"/api/v1/jobs/{UUID(int=7)}/items?{query}")

    assert (answer.status_code, answer.json()["code"]) == (status, code or "job-not-found")


async def test_a_part_of_a_bulk_job_cannot_be_cancelled_alone(fake: FakeServices, client: httpx.AsyncClient) -> None:
    bulk = fake.jobs.add(job_row("bulk.expand"))
    lane = fake.jobs.add(job_row("bulk.lane", parent_id=bulk.id))
    answer = await client.post(f"/api/v1/jobs/{lane.id}/cancel")

    assert (answer.status_code, answer.json()["code"], answer.json()["job_id"]) == (409, "child-job", str(bulk.id))


async def test_a_copying_job_shows_its_progress_in_bytes(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row("snapshot.take", total=MIB, succeeded=1024))

    progress = (await client.get(f"/api/v1/jobs/{job.id}")).json()["progress"]
    assert (progress["unit"], progress["total"], progress["succeeded"]) == ("bytes", MIB, 1024)


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
async def test_expand_is_no_volume(client: httpx.AsyncClient, version: str, method: str) -> None:
    answer = await client.request(method, f"/api/{version}/volumes/expand", json={})

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
