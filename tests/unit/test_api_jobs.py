"""Routes of jobs: get, poll, wait, cancel, retry, list."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest

from domain.jobs.states import JobStatus
from tests.unit.fakes import NOON, FakeServices, job_row, volume_row

JOBS = "/api/v1/jobs"


async def test_job_response_hides_internal_columns(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(
        job_row(params={"size": 5, "fence_version": 7}, error={"code": "storage-busy", "detail": "Busy."})
    )
    body = (await client.get(f"{JOBS}/{job.id}")).json()

    assert body["params"] == {"size": 5}
    assert body["error"] == {"code": "storage-busy", "detail": "Busy."}
    assert body["progress"] is None
    assert not {"fence_version", "epoch", "dispatched_at", "lease_expires_at", "version"} & body.keys()


async def test_bulk_job_reports_progress(fake: FakeServices, client: httpx.AsyncClient) -> None:
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


async def test_running_bulk_job_reports_rate_and_estimated_end(fake: FakeServices, client: httpx.AsyncClient) -> None:
    started = datetime.now(UTC) - timedelta(seconds=100)
    job = fake.jobs.add(job_row("bulk.expand", total=400, succeeded=90, failed=4, skipped=6, started_at=started))

    progress = (await client.get(f"{JOBS}/{job.id}")).json()["progress"]
    assert progress["per_second"] == pytest.approx(1, rel=0.1)
    assert datetime.fromisoformat(progress["estimated_end"]) - started > timedelta(seconds=390)


async def test_ended_bulk_job_reports_its_rate_and_no_estimate(fake: FakeServices, client: httpx.AsyncClient) -> None:
    times = {"started_at": NOON, "finished_at": NOON + timedelta(seconds=5)}
    job = fake.jobs.add(job_row("bulk.expand", status=JobStatus.SUCCEEDED, total=10, succeeded=10, **times))

    progress = (await client.get(f"{JOBS}/{job.id}")).json()["progress"]
    assert (progress["per_second"], progress["estimated_end"]) == (2, None)


async def test_only_an_active_job_has_retry_after(fake: FakeServices, client: httpx.AsyncClient) -> None:
    active, ended = fake.jobs.add(job_row()), fake.jobs.add(job_row())
    ended.status, ended.finished_at = JobStatus.FAILED, NOON

    assert (await client.get(f"{JOBS}/{active.id}")).headers["retry-after"] == "1"
    assert "retry-after" not in (await client.get(f"{JOBS}/{ended.id}")).headers


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
async def test_unchanged_job_is_304(fake: FakeServices, client: httpx.AsyncClient, form: str) -> None:
    job = fake.jobs.add(job_row())
    etag = (await client.get(f"{JOBS}/{job.id}")).headers["etag"]
    response = await client.get(f"{JOBS}/{job.id}", headers={"If-None-Match": form.format(etag)})

    assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
    assert response.headers["retry-after"] == "1"


async def test_changed_job_is_200_with_a_new_etag(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())
    etag = (await client.get(f"{JOBS}/{job.id}")).headers["etag"]
    job.version += 1
    response = await client.get(f"{JOBS}/{job.id}", headers={"If-None-Match": etag})

    assert response.status_code == 200
    assert response.headers["etag"] != etag
    assert not response.headers["etag"].startswith("W/")


async def test_jobs_with_equal_versions_have_different_etags(fake: FakeServices, client: httpx.AsyncClient) -> None:
    addresses = [f"{JOBS}/{fake.jobs.add(job_row()).id}" for _ in range(2)]

    assert len({(await client.get(address)).headers["etag"] for address in addresses}) == 2


async def test_get_with_prefer_wait_returns_the_ended_job(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())
    response = await client.get(f"{JOBS}/{job.id}", headers={"Prefer": "wait=99"})

    assert fake.watcher.waits == [30]
    assert response.headers["preference-applied"] == "wait=30"
    assert (response.status_code, response.json()["status"]) == (200, "succeeded")
    assert "retry-after" not in response.headers


async def test_get_that_waited_for_a_change_is_200(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())
    etag = (await client.get(f"{JOBS}/{job.id}")).headers["etag"]
    response = await client.get(f"{JOBS}/{job.id}", headers={"Prefer": "wait=1", "If-None-Match": etag})

    assert response.status_code == 200


async def test_get_with_invalid_prefer_does_not_wait(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())
    response = await client.get(f"{JOBS}/{job.id}", headers={"Prefer": "wait=soon, respond-async"})

    assert fake.watcher.waits == []
    assert "preference-applied" not in response.headers


async def test_post_that_waited_is_still_202(fake: FakeServices, client: httpx.AsyncClient) -> None:
    response = await client.post("/api/v1/volumes", json={"name": "a", "size": 1}, headers={"Prefer": "wait=10"})

    assert (response.status_code, response.json()["status"]) == (202, "succeeded")
    assert response.headers["preference-applied"] == "wait=10"
    assert response.headers["location"] == f"/api/v1/jobs/{response.json()['id']}"


async def test_delete_applies_prefer_wait(fake: FakeServices, client: httpx.AsyncClient) -> None:
    volume = fake.volumes.add(volume_row())
    response = await client.delete(f"/api/v1/volumes/{volume.id}", headers={"Prefer": "wait=0"})

    assert (response.headers["preference-applied"], fake.watcher.waits) == ("wait=0", [0])


async def test_accepted_job_is_202_even_if_the_wait_fails(fake: FakeServices, client: httpx.AsyncClient) -> None:
    fake.watcher.database_is_up = False
    response = await client.post("/api/v1/volumes", json={"name": "a", "size": 1}, headers={"Prefer": "wait=10"})

    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert "preference-applied" not in response.headers


async def test_cancelled_job_cannot_be_cancelled_again(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())

    response = await client.post(f"{JOBS}/{job.id}/cancel")
    assert (response.status_code, response.json()["status"]) == (202, "cancelled")
    assert response.headers["location"] == f"{JOBS}/{job.id}"

    response = await client.post(f"{JOBS}/{job.id}/cancel")
    assert (response.status_code, response.json()["code"], response.json()["status"]) == (409, "job-ended", 409)


async def test_retry_creates_a_new_job_that_names_the_old_one(fake: FakeServices, client: httpx.AsyncClient) -> None:
    job = fake.jobs.add(job_row())
    assert (await client.post(f"{JOBS}/{job.id}/retry")).json()["code"] == "job-not-retryable"

    job.status, job.finished_at = JobStatus.FAILED, NOON
    response = await client.post(f"{JOBS}/{job.id}/retry")

    assert (response.status_code, response.json()["retry_of"]) == (202, str(job.id))
    assert response.headers["location"] == f"{JOBS}/{response.json()['id']}"


async def test_job_list_is_filtered_and_hides_children(fake: FakeServices, client: httpx.AsyncClient) -> None:
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
