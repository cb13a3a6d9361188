"""Retrying an ended job creates a new job that refers to it."""

import asyncio
from uuid import uuid4

import pytest

from domain.errors import JobNotFound, JobNotRetryable, ShrinkRefused, VolumeBusy, VolumeNotFound, VolumeUnusable
from domain.jobs.attempt import ClaimedJob, Failed, Succeeded
from domain.jobs.model import Job
from domain.services import Services
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, a_queued_expand, an_engine, everything, row, set_job, sql, volume_row

ERROR = {"code": "storage-full", "detail": "Full."}


async def failed(services: Services, job: Job) -> Job:
    """Claim this job and let it fail."""
    engine = an_engine(services)
    claim = await engine.claim(job.message)
    assert claim is not None
    assert await engine.settle(claim.job, Failed(ERROR))
    return await row(services, job.id)


async def succeeded(services: Services, job: Job) -> None:
    engine = an_engine(services)
    claim = await engine.claim(job.message)
    assert claim is not None
    assert await engine.settle(claim.job, Succeeded({"size": claim.job.params["to_size"]}))


async def test_retry_is_a_new_job_with_the_same_target(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    new = await services.jobs.retry(old.id)
    volume = await volume_row(services, old.volume_id)

    assert (new.retry_of, new.kind, new.volume_id, new.status) == (old.id, old.kind, old.volume_id, "queued")
    assert new.params["to_size"] == old.params["to_size"]
    assert (new.attempt, new.epoch) == (0, 0)
    assert (volume["state"], volume["job_id"]) == ("expanding", new.id)
    assert (await row(services, old.id)).status == "failed"


async def test_retry_is_dispatched(services: Services) -> None:
    new = await services.jobs.retry((await failed(services, await a_queued_expand(services))).id)

    assert await services.queue.missing([new.message]) == []


async def test_retry_has_a_higher_fence_than_the_failed_job(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    new = await services.jobs.retry(old.id)

    assert ClaimedJob.from_row(new).fence > ClaimedJob.from_row(old).fence


async def test_one_of_many_concurrent_retries_succeeds(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    results = await asyncio.gather(*(services.jobs.retry(old.id) for _ in range(20)), return_exceptions=True)

    assert sorted(type(result).__name__ for result in results) == ["Job"] + ["JobNotRetryable"] * 19
    assert await sql(services, "SELECT count(*) FROM jobs") == [(2,)]


async def test_second_retry_is_refused_with_the_id_of_the_first(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    new = await services.jobs.retry(old.id)
    with pytest.raises(JobNotRetryable, match="already retried") as refused:
        await services.jobs.retry(old.id)

    assert refused.value.details == {"job_id": new.id}


async def test_failed_retry_can_be_retried(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    new = await failed(services, await services.jobs.retry(old.id))

    assert (await services.jobs.retry(new.id)).retry_of == new.id


async def test_cancelled_job_can_be_retried(services: Services) -> None:
    old = await services.jobs.cancel((await a_queued_expand(services)).id)

    assert (await services.jobs.retry(old.id)).status == "queued"


async def test_live_and_succeeded_jobs_cannot_be_retried(services: Services) -> None:
    job = await a_queued_expand(services)
    for status, finished in (("queued", "NULL"), ("running", "NULL"), ("succeeded", "now()")):
        await set_job(services, job.id, f"status = '{status}', started_at = now(), finished_at = {finished}")
        before = await everything(services)
        with pytest.raises(JobNotRetryable) as refused:
            await services.jobs.retry(job.id)

        assert refused.value.details == {"job_status": status}
        assert await everything(services) == before


async def test_unknown_job_cannot_be_retried(services: Services) -> None:
    with pytest.raises(JobNotFound):
        await services.jobs.retry(uuid4())


async def test_job_of_a_busy_volume_cannot_be_retried(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    assert old.volume_id is not None
    other = await services.volumes.request_expand(old.volume_id, Growth(by=1))
    with pytest.raises(VolumeBusy) as refused:
        await services.jobs.retry(old.id)

    assert refused.value.details["job_id"] == other.id


async def test_failed_create_is_retried_with_its_size(services: Services) -> None:
    old = await failed(services, await services.volumes.request_create(NewVolume("again", 5 * MIB)))
    assert (await volume_row(services, old.volume_id))["state"] == "error"
    new = await services.jobs.retry(old.id)

    assert (new.params["size"], new.volume_id) == (5 * MIB, old.volume_id)
    assert (await volume_row(services, old.volume_id))["state"] == "creating"


async def test_failed_delete_can_be_retried(services: Services) -> None:
    expanded = await failed(services, await a_queued_expand(services))
    assert expanded.volume_id is not None
    old = await failed(services, await services.volumes.request_delete(expanded.volume_id))

    assert (await services.jobs.retry(old.id)).kind == "volume.delete"
    assert (await volume_row(services, old.volume_id))["state"] == "deleting"


async def test_expand_of_a_volume_in_error_cannot_be_retried(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    assert old.volume_id is not None
    await failed(services, await services.volumes.request_delete(old.volume_id))
    with pytest.raises(VolumeUnusable):
        await services.jobs.retry(old.id)


async def test_expand_of_a_volume_that_has_grown_since_cannot_be_retried(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    assert old.volume_id is not None
    await succeeded(services, await services.volumes.request_expand(old.volume_id, Growth(by=10 * MIB)))
    before = await everything(services)
    with pytest.raises(ShrinkRefused):
        await services.jobs.retry(old.id)

    assert await everything(services) == before


async def test_job_of_a_deleted_volume_cannot_be_retried(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    await sql(services, "DELETE FROM volumes")
    with pytest.raises(VolumeNotFound):
        await services.jobs.retry(old.id)
