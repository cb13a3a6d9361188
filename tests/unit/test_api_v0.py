"""Routes of version 0: the response is the resource after the job has ended."""

from uuid import UUID

import httpx
import pytest

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.bulk.requests import Selection
from domain.jobs.states import JobStatus
from tests.unit.fakes import FakeServices, snapshot_row, volume_row

V0 = "/api/v0"
BODY = {"name": "a", "size": 1}


async def test_response_is_delayed_until_the_job_has_ended(fake: FakeServices, client: httpx.AsyncClient) -> None:
    response = await client.post(f"{V0}/volumes", json=BODY)

    assert (response.status_code, response.json()["name"], response.json()["size"]) == (201, "a", 4096)
    assert fake.watcher.waits == [30]
    assert (await client.get(f"{V0}/volumes/{response.json()['id']}")).json() == response.json()
    assert (await client.get(f"{V0}/volumes")).json() == {"items": [response.json()], "next_cursor": None}


async def test_each_operation_returns_its_resource(fake: FakeServices, client: httpx.AsyncClient) -> None:
    one, two, three = (fake.volumes.add(volume_row(name)) for name in ("one", "two", "three"))
    snapshot, other = (fake.snapshots.add(snapshot_row(three, name)) for name in ("a", "b"))

    grown = await client.post(f"{V0}/volumes/{one.id}/expand", json={"percent": 50})
    taken = await client.post(f"{V0}/volumes/{two.id}/snapshots", json={"name": "now"})
    restored = await client.post(f"{V0}/snapshots/{snapshot.id}/restore")
    deleted = await client.delete(f"{V0}/snapshots/{other.id}")
    copied = await client.post(f"{V0}/volumes", json={"name": "copy", "from_snapshot": str(taken.json()["id"])})

    assert (grown.status_code, grown.json()["id"]) == (200, str(one.id))
    assert (taken.status_code, taken.json()["name"], taken.json()["volume_id"]) == (201, "now", str(two.id))
    assert (restored.status_code, restored.json()["id"]) == (200, str(three.id))
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert copied.json()["code"] == "snapshot-busy"
    assert (await client.get(f"{V0}/snapshots/{snapshot.id}")).json()["name"] == "a"
    listed = (await client.get(f"{V0}/snapshots?volume_id={three.id}")).json()["items"]
    assert [item["name"] for item in listed] == ["b", "a"]
    assert (await client.delete(f"{V0}/volumes/{three.id}")).json()["code"] == "volume-has-snapshots"
    gone = fake.volumes.add(volume_row("gone"))
    assert (await client.delete(f"{V0}/volumes/{gone.id}")).status_code == 204


async def test_many_volumes_are_expanded_as_the_body_says(fake: FakeServices, client: httpx.AsyncClient) -> None:
    response = await client.post(f"{V0}/volumes/expand", json={"percent": 10, "labels": {"a": "b"}})

    assert (response.status_code, response.json()["status"]) == (200, "succeeded")
    assert fake.bulk.requests == [BulkExpandRequest(GrowthPolicy(percent=10), selection=Selection(labels={"a": "b"}))]


async def test_many_volumes_are_not_expanded_without_a_body(fake: FakeServices, client: httpx.AsyncClient) -> None:
    bodies: tuple[dict[str, object] | None, ...] = (None, {})
    for body in bodies:
        response = await client.post(f"{V0}/volumes/expand", json=body)

        assert (response.status_code, response.json()["code"]) == (422, "growth-required")
    assert fake.bulk.requests == []


async def test_job_that_has_not_ended_in_time_is_202(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.watcher.jobs_end = False
    response = await client.post(f"{V0}/volumes", json=BODY)

    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert response.headers["location"] == f"/api/v1/jobs/{response.json()['id']}"
    assert response.headers["retry-after"] == "1"


async def test_response_has_the_job_even_if_the_wait_fails(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.watcher.database_is_up = False
    response = await client.post(f"{V0}/volumes", json=BODY)

    assert (response.status_code, response.json()["status"]) == (202, "queued")


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED])
async def test_failed_job_is_a_424_with_its_id(
    fake: FakeServices, client: httpx.AsyncClient, status: JobStatus
) -> None:
    fake.watcher.final_status = status
    response = await client.post(f"{V0}/volumes", json=BODY)

    problem = response.json()
    assert (response.status_code, response.headers["content-type"]) == (424, "application/problem+json")
    assert (problem["code"], problem["job_status"], problem["error"]) == ("job-failed", status, None)
    assert UUID(problem["job_id"]) in fake.jobs.rows


async def test_partial_bulk_job_is_a_success(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.watcher.final_status = JobStatus.PARTIAL

    assert (await client.post(f"{V0}/volumes/expand", json={"percent": 10})).json()["status"] == "partial"


async def test_errors_are_those_of_version_1(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row())

    for response, code in (
        (await client.post(f"{V0}/volumes", json={"name": "one", "size": 1}), "name-taken"),
        (await client.post(f"{V0}/volumes", json={"name": "two"}), "invalid"),
        (await client.post(f"{V0}/volumes/{volume.id}/expand", json={}), "growth-required"),
        (await client.post(f"{V0}/volumes/{volume.id}/expand", json={"to": 1}), "shrink-refused"),
        (await client.get(f"{V0}/volumes/{UUID(int=7)}"), "volume-not-found"),
        (await client.get(f"{V0}/snapshots/{UUID(int=7)}"), "snapshot-not-found"),
        (await client.get(f"{V0}/volumes?colour=blue"), "invalid"),
    ):
        assert response.json()["code"] == code


async def test_repeated_key_waits_for_the_first_job(fake: FakeServices, client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "once"}
    fake.watcher.jobs_end = False
    slow = await client.post(f"{V0}/volumes", json=BODY, headers=key)
    fake.watcher.jobs_end = True
    again = await client.post(f"{V0}/volumes", json=BODY, headers=key)

    assert (slow.status_code, again.status_code) == (202, 201)
    assert again.json()["id"] == slow.json()["volume_id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert len(fake.volumes.rows) == 1


async def test_repeated_key_of_a_failed_job_is_424_again(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.watcher.final_status = JobStatus.FAILED
    responses = [await client.post(f"{V0}/volumes", json=BODY, headers={"Idempotency-Key": "once"}) for _ in range(2)]

    assert [response.status_code for response in responses] == [424, 424]
    assert responses[1].headers["idempotency-replayed"] == "true"
