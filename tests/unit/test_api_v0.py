"""Version 0, the synchronous dialect: the answer is the thing as it has become."""

from uuid import UUID

import httpx
import pytest

from domain.bulk.expand.policy import BulkExpandRequest, GrowthPolicy
from domain.jobs.states import JobStatus
from tests.unit.fakes import FakeServices, snapshot_row, volume_row

V0 = "/api/v0"
BODY = {"name": "a", "size": 1}


async def test_a_request_is_held_until_its_job_has_ended(fake: FakeServices, client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{V0}/volumes", json=BODY)

    assert (answer.status_code, answer.json()["name"], answer.json()["size"]) == (201, "a", 1)
    assert fake.watcher.waited == [30]
    assert (await client.get(f"{V0}/volumes/{answer.json()['id']}")).json() == answer.json()
    assert (await client.get(f"{V0}/volumes")).json() == {"items": [answer.json()], "next_cursor": None}


async def test_each_operation_answers_with_what_it_was_about(fake: FakeServices, client: httpx.AsyncClient) -> None:
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


async def test_the_whole_fleet_grows_by_default_without_a_body(fake: FakeServices, client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{V0}/volumes/expand")

    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert fake.expansion.asked == [BulkExpandRequest(GrowthPolicy(percent=10))]


async def test_a_body_that_nobody_would_read_is_refused(fake: FakeServices, client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{V0}/volumes/expand", json={"percent": 1})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert fake.expansion.asked == []


async def test_a_job_that_takes_longer_is_answered_with_itself(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.watcher.ends = False
    answer = await client.post(f"{V0}/volumes", json=BODY)

    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.headers["location"] == f"/api/v1/jobs/{answer.json()['id']}"
    assert answer.headers["retry-after"] == "1"


async def test_a_client_learns_its_job_although_the_waiting_fails(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    fake.watcher.database_is_up = False
    answer = await client.post(f"{V0}/volumes", json=BODY)

    assert (answer.status_code, answer.json()["status"]) == (202, "queued")


@pytest.mark.parametrize("how", [JobStatus.FAILED, JobStatus.CANCELLED])
async def test_a_job_that_failed_is_a_problem_that_names_it(
    fake: FakeServices, client: httpx.AsyncClient, how: JobStatus
) -> None:
    fake.watcher.how = how
    answer = await client.post(f"{V0}/volumes", json=BODY)

    told = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (424, "application/problem+json")
    assert (told["code"], told["job_status"], told["error"]) == ("job-failed", how, None)
    assert UUID(told["job_id"]) in fake.jobs.rows


async def test_a_bulk_of_which_some_failed_is_an_answer(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.watcher.how = JobStatus.PARTIAL

    assert (await client.post(f"{V0}/volumes/expand")).json()["status"] == "partial"


async def test_what_is_refused_is_refused_as_in_version_1(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row())

    for answer, code in (
        (await client.post(f"{V0}/volumes", json={"name": "one", "size": 1}), "name-taken"),
        (await client.post(f"{V0}/volumes", json={"name": "two"}), "invalid"),
        (await client.post(f"{V0}/volumes/{volume.id}/expand", json={}), "growth-required"),
        (await client.post(f"{V0}/volumes/{volume.id}/expand", json={"to": 1}), "shrink-refused"),
        (await client.get(f"{V0}/volumes/{UUID(int=7)}"), "volume-not-found"),
        (await client.get(f"{V0}/snapshots/{UUID(int=7)}"), "snapshot-not-found"),
        (await client.get(f"{V0}/volumes?colour=blue"), "invalid"),
    ):
        assert answer.json()["code"] == code


async def test_the_same_key_waits_for_the_same_job(fake: FakeServices, client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "once"}
    fake.watcher.ends = False
    slow = await client.post(f"{V0}/volumes", json=BODY, headers=key)
    fake.watcher.ends = True
    again = await client.post(f"{V0}/volumes", json=BODY, headers=key)

    assert (slow.status_code, again.status_code) == (202, 201)
    assert again.json()["id"] == slow.json()["volume_id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert len(fake.volumes.rows) == 1


async def test_a_repeated_request_whose_job_failed_says_so_again(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.watcher.how = JobStatus.FAILED
    answers = [await client.post(f"{V0}/volumes", json=BODY, headers={"Idempotency-Key": "once"}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [424, 424]
    assert answers[1].headers["idempotency-replayed"] == "true"
