"""A user asks once more for what an ended job did not achieve: a new job, linked to the old one."""

import asyncio
from uuid import uuid4

import pytest

from domain.errors import JobNotFound, JobNotRetryable, ShrinkRefused, VolumeBusy, VolumeNotFound, VolumeUnusable
from domain.jobs.claimed import ClaimedJob
from domain.jobs.model import Job
from domain.jobs.outcomes import Failed, Succeeded
from domain.services import Services
from domain.volumes.growth import Growth
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, a_queued_expand, an_engine, everything, row, set_job, sql, volume_row

ERROR = {"code": "storage-full", "detail": "Full."}


async def failed(services: Services, job: Job) -> Job:
    """Have a worker give this job up."""
    engine = an_engine(services)
    claim = await engine.claim(job.dispatch)
    assert claim is not None
    assert await engine.settle(claim.job, Failed(ERROR))
    return await row(services, job.id)


async def succeeded(services: Services, job: Job) -> None:
    engine = an_engine(services)
    claim = await engine.claim(job.dispatch)
    assert claim is not None
    assert await engine.settle(claim.job, Succeeded({"size": claim.job.params["to_size"]}))


async def test_a_retry_is_a_new_job_for_the_same_thing(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    new = await services.jobs.retry(old.id)
    volume = await volume_row(services, old.volume_id)

    assert (new.retry_of, new.kind, new.volume_id, new.status) == (old.id, old.kind, old.volume_id, "queued")
    assert new.params["to_size"] == old.params["to_size"]
    assert (new.attempt, new.epoch) == (0, 0)
    assert (volume["state"], volume["job_id"]) == ("expanding", new.id)
    assert (await row(services, old.id)).status == "failed"


async def test_a_retry_is_rung(services: Services) -> None:
    new = await services.jobs.retry((await failed(services, await a_queued_expand(services))).id)

    assert await services.queue.missing([new.dispatch]) == []


async def test_a_retry_has_a_higher_fence_than_anything_before(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    new = await services.jobs.retry(old.id)

    assert ClaimedJob.from_row(new).fence > ClaimedJob.from_row(old).fence


async def test_of_many_who_retry_at_once_one_does(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    ends = await asyncio.gather(*(services.jobs.retry(old.id) for _ in range(20)), return_exceptions=True)

    assert sorted(type(end).__name__ for end in ends) == ["Job"] + ["JobNotRetryable"] * 19
    assert await sql(services, "SELECT count(*) FROM jobs") == [(2,)]


async def test_whoever_retries_again_hears_which_job_did(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    new = await services.jobs.retry(old.id)
    with pytest.raises(JobNotRetryable, match="retried before") as refused:
        await services.jobs.retry(old.id)

    assert refused.value.details == {"job_id": new.id}


async def test_a_retry_that_failed_can_be_retried_itself(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    new = await failed(services, await services.jobs.retry(old.id))

    assert (await services.jobs.retry(new.id)).retry_of == new.id


async def test_a_cancelled_job_can_be_retried(services: Services) -> None:
    old = await services.jobs.cancel((await a_queued_expand(services)).id)

    assert (await services.jobs.retry(old.id)).status == "queued"


async def test_what_lives_or_succeeded_is_not_retried(services: Services) -> None:
    job = await a_queued_expand(services)
    for status, finished in (("queued", "NULL"), ("running", "NULL"), ("succeeded", "now()")):
        await set_job(services, job.id, f"status = '{status}', started_at = now(), finished_at = {finished}")
        before = await everything(services)
        with pytest.raises(JobNotRetryable) as refused:
            await services.jobs.retry(job.id)

        assert refused.value.details == {"job_status": status}
        assert await everything(services) == before


async def test_a_job_that_nobody_knows_is_not_retried(services: Services) -> None:
    with pytest.raises(JobNotFound):
        await services.jobs.retry(uuid4())


async def test_while_the_volume_is_busy_nothing_is_retried(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    assert old.volume_id is not None
    other = await services.volumes.request_expand(old.volume_id, Growth(by=1))
    with pytest.raises(VolumeBusy) as refused:
        await services.jobs.retry(old.id)

    assert refused.value.details["job_id"] == other.id


async def test_a_create_that_failed_is_tried_again_with_its_size(services: Services) -> None:
    old = await failed(services, await services.volumes.request_create(NewVolume("again", 5 * MIB)))
    assert (await volume_row(services, old.volume_id))["state"] == "error"
    new = await services.jobs.retry(old.id)

    assert (new.params["size"], new.volume_id) == (5 * MIB, old.volume_id)
    assert (await volume_row(services, old.volume_id))["state"] == "creating"


async def test_a_delete_that_failed_is_tried_again(services: Services) -> None:
    expanded = await failed(services, await a_queued_expand(services))
    assert expanded.volume_id is not None
    old = await failed(services, await services.volumes.request_delete(expanded.volume_id))

    assert (await services.jobs.retry(old.id)).kind == "volume.delete"
    assert (await volume_row(services, old.volume_id))["state"] == "deleting"


async def test_an_expansion_of_a_volume_in_error_is_not_tried_again(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    assert old.volume_id is not None
    await failed(services, await services.volumes.request_delete(old.volume_id))
    with pytest.raises(VolumeUnusable):
        await services.jobs.retry(old.id)


async def test_an_expansion_that_others_have_overtaken_is_not_tried_again(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    assert old.volume_id is not None
    await succeeded(services, await services.volumes.request_expand(old.volume_id, Growth(by=10 * MIB)))
    before = await everything(services)
    with pytest.raises(ShrinkRefused):
        await services.jobs.retry(old.id)

    assert await everything(services) == before


async def test_what_a_volume_was_wanted_for_dies_with_it(services: Services) -> None:
    old = await failed(services, await a_queued_expand(services))
    await sql(services, "DELETE FROM volumes")
    with pytest.raises(VolumeNotFound):
        await services.jobs.retry(old.id)
