"""Jobs over HTTP: looking, polling, waiting, cancelling, retrying."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest

from domain.jobs.states import JobStatus
from tests.unit.fakes import NOON, FakeServices, job_row, volume_row

JOBS = "/api/v1/jobs"


async def test_a_job_is_shown_without_what_only_workers_need(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row(params={"size": 5, "fence": 7}, error={"code": "storage-busy", "detail": "Busy."}))
    shown = (await client.get(f"{JOBS}/{job.id}")).json()

    assert shown["params"] == {"size": 5}
    assert shown["error"] == {"code": "storage-busy", "detail": "Busy."}
    assert shown["progress"] is None
    assert not {"fence", "epoch", "dispatched_at", "lease_expires_at", "version"} & shown.keys()


async def test_a_bulk_job_shows_its_progress(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row("bulk.expand", total=9, succeeded=4, failed=1, skipped=2))

    assert (await client.get(f"{JOBS}/{job.id}")).json()["progress"] == {
        "unit": "volumes",
        "total": 9,
        "succeeded": 4,
        "failed": 1,
        "skipped": 2,
        "per_second": None,
        "estimated_end": None,
    }


async def test_a_bulk_job_at_work_tells_its_rate_and_when_it_will_have_ended(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    began = datetime.now(UTC) - timedelta(seconds=100)
    job = fake.jobs.add(job_row("bulk.expand", total=400, succeeded=90, failed=4, skipped=6, started_at=began))

    progress = (await client.get(f"{JOBS}/{job.id}")).json()["progress"]
    assert progress["per_second"] == pytest.approx(1, rel=0.1)
    assert datetime.fromisoformat(progress["estimated_end"]) - began > timedelta(seconds=390)


async def test_a_bulk_job_that_has_ended_tells_the_rate_it_had(fake: FakeServices, client: httpx.AsyncClient) -> None:
    times = {"started_at": NOON, "finished_at": NOON + timedelta(seconds=5)}
    job = fake.jobs.add(job_row("bulk.expand", status=JobStatus.SUCCEEDED, total=10, succeeded=10, **times))

    progress = (await client.get(f"{JOBS}/{job.id}")).json()["progress"]
    assert (progress["per_second"], progress["estimated_end"]) == (2, None)


async def test_only_a_live_job_asks_to_be_polled_again(fake: FakeServices, client: httpx.AsyncClient) -> None:
    live, ended = fake.jobs.add(job_row()), fake.jobs.add(job_row())
    ended.status, ended.finished_at = JobStatus.FAILED, NOON

    assert (await client.get(f"{JOBS}/{live.id}")).headers["retry-after"] == "1"
    assert "retry-after" not in (await client.get(f"{JOBS}/{ended.id}")).headers


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
async def test_a_job_that_has_not_changed_is_not_sent_again(
    fake: FakeServices, client: httpx.AsyncClient, form: str
) -> None:
    job = fake.jobs.add(job_row())
    etag = (await client.get(f"{JOBS}/{job.id}")).headers["etag"]
    answer = await client.get(f"{JOBS}/{job.id}", headers={"If-None-Match": form.format(etag)})

    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert answer.headers["retry-after"] == "1"


async def test_a_job_that_has_changed_is_sent_again(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())
    etag = (await client.get(f"{JOBS}/{job.id}")).headers["etag"]
    job.version += 1
    answer = await client.get(f"{JOBS}/{job.id}", headers={"If-None-Match": etag})

    assert answer.status_code == 200
    assert answer.headers["etag"] != etag
    assert not answer.headers["etag"].startswith("W/")


async def test_two_jobs_of_one_version_have_two_etags(fake: FakeServices, client: httpx.AsyncClient) -> None:
    addresses = [f"{JOBS}/{fake.jobs.add(job_row()).id}" for _ in range(2)]

    assert len({(await client.get(address)).headers["etag"] for address in addresses}) == 2


async def test_a_get_waits_for_the_end_if_asked_to(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())
    answer = await client.get(f"{JOBS}/{job.id}", headers={"Prefer": "wait=99"})

    assert fake.watcher.waited == [30]
    assert answer.headers["preference-applied"] == "wait=30"
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert "retry-after" not in answer.headers


async def test_a_waiting_get_that_sees_a_change_is_no_304(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())
    etag = (await client.get(f"{JOBS}/{job.id}")).headers["etag"]
    answer = await client.get(f"{JOBS}/{job.id}", headers={"Prefer": "wait=1", "If-None-Match": etag})

    assert answer.status_code == 200


async def test_nobody_waits_unasked(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())
    answer = await client.get(f"{JOBS}/{job.id}", headers={"Prefer": "wait=soon, respond-async"})

    assert fake.watcher.waited == []
    assert "preference-applied" not in answer.headers


async def test_a_post_that_waited_is_still_a_202(fake: FakeServices, client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/v1/volumes", json={"name": "a", "size": 1}, headers={"Prefer": "wait=10"})

    assert (answer.status_code, answer.json()["status"]) == (202, "succeeded")
    assert answer.headers["preference-applied"] == "wait=10"
    assert answer.headers["location"] == f"/api/v1/jobs/{answer.json()['id']}"


async def test_a_delete_waits_too(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row())
    answer = await client.delete(f"/api/v1/volumes/{volume.id}", headers={"Prefer": "wait=0"})

    assert (answer.headers["preference-applied"], fake.watcher.waited) == ("wait=0", [0])


async def test_an_accepted_job_is_a_202_although_the_waiting_fails(
    fake: FakeServices, client: httpx.AsyncClient
) -> None:
    fake.watcher.database_is_up = False
    answer = await client.post("/api/v1/volumes", json={"name": "a", "size": 1}, headers={"Prefer": "wait=10"})

    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert "preference-applied" not in answer.headers


async def test_a_cancelled_job_cannot_be_cancelled_again(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())

    answer = await client.post(f"{JOBS}/{job.id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert answer.headers["location"] == f"{JOBS}/{job.id}"

    answer = await client.post(f"{JOBS}/{job.id}/cancel")
    assert (answer.status_code, answer.json()["code"], answer.json()["status"]) == (409, "job-ended", 409)


async def test_a_retry_is_a_new_job_that_names_the_old_one(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())
    assert (await client.post(f"{JOBS}/{job.id}/retry")).json()["code"] == "job-not-retryable"

    job.status, job.finished_at = JobStatus.FAILED, NOON
    answer = await client.post(f"{JOBS}/{job.id}/retry")

    assert (answer.status_code, answer.json()["retry_of"]) == (202, str(job.id))
    assert answer.headers["location"] == f"{JOBS}/{answer.json()['id']}"


async def test_a_list_of_jobs_is_filtered_and_hides_children(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = volume_row()
    first = fake.jobs.add(job_row("volume.create", volume_id=volume.id, status=JobStatus.SUCCEEDED))
    bulk = fake.jobs.add(job_row("bulk.expand"))
    lane = fake.jobs.add(job_row("bulk.lane", parent_id=bulk.id))

    async def listed(query: str) -> list[str]:
        return [job["id"] for job in (await client.get(f"{JOBS}?{query}")).json()["items"]]

    assert await listed("") == [str(bulk.id), str(first.id)]
    assert await listed("status=queued") == [str(bulk.id)]
    assert await listed("kind=volume.create") == [str(first.id)]
    assert await listed(f"volume_id={volume.id}") == [str(first.id)]
    assert await listed(f"parent_id={bulk.id}") == [str(lane.id)]
