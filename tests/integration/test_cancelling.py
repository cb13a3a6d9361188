"""Cancelling jobs: at once if they never started, otherwise by their worker."""

import asyncio
from uuid import uuid4

import pytest

from domain.errors import JobEnded, JobNotFound
from domain.jobs.attempt import RetryIn
from domain.jobs.states import ENDED
from domain.services import Services
from domain.volumes.model import Growth
from tests.integration.job_builders import (
    a_queued_expand,
    a_volume,
    an_engine,
    everything,
    row,
    run_out,
    set_job,
    sql,
    volume_row,
)


async def test_cancelling_an_unstarted_job_ends_it_and_releases_its_volume(services: Services) -> None:
    job = await a_queued_expand(services)
    cancelled = await services.jobs.cancel(job.id)
    volume = await volume_row(services, job.volume_id)

    assert (cancelled.status, cancelled.finished_at is not None) == ("cancelled", True)
    assert cancelled.cancel_requested_at is not None
    assert (volume["state"], volume["job_id"]) == ("available", None)


async def test_cancel_returns_the_stored_row(services: Services) -> None:
    job = await a_queued_expand(services)
    returned = await services.jobs.cancel(job.id)
    stored = await row(services, job.id)

    assert (returned.version, returned.status, returned.finished_at) == (
        stored.version,
        stored.status,
        stored.finished_at,
    )


async def test_cancelled_job_cannot_be_claimed(services: Services) -> None:
    job = await a_queued_expand(services)
    await services.jobs.cancel(job.id)

    assert await an_engine(services).claim(job.message) is None


async def test_next_operation_is_accepted_after_a_cancellation(services: Services) -> None:
    job = await a_queued_expand(services)
    await services.jobs.cancel(job.id)
    assert job.volume_id is not None

    assert (await services.volumes.request_expand(job.volume_id, Growth(percent=1))).status == "queued"


async def test_running_job_continues_until_its_worker_reads_the_cancellation(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    await engine.claim(job.message)
    assert (await services.jobs.cancel(job.id)).status == "running"
    renewed = await engine.renew([job.id])

    assert [renewal.cancel_requested for renewal in renewed.renewals] == [True]
    assert (await volume_row(services, job.volume_id))["state"] == "expanding"


async def test_cancelling_a_job_that_awaits_its_retry_dispatches_it_at_once(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    claim = await engine.claim(job.message)
    assert claim is not None
    await engine.settle(claim.job, RetryIn(1000, {}))
    waiting = await services.jobs.cancel(job.id)
    second = await engine.claim(waiting.message)

    assert (waiting.status, waiting.epoch) == ("queued", 1)
    assert await services.queue.missing([waiting.message]) == []
    assert second is not None
    assert second.job.cancel_requested_at is not None


async def test_lost_message_of_a_cancellation_is_resent_before_the_retry_is_due(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    claim = await engine.claim(job.message)
    assert claim is not None
    await engine.settle(claim.job, RetryIn(1000, {}))
    await services.jobs.cancel(job.id)
    await services.queue.redis.flushall()
    await set_job(services, job.id, "dispatched_at = now() - interval '1 minute'")

    assert await engine.maintenance.redispatch_lost() == 1


async def test_cancelled_job_that_was_rescued_is_ended_by_a_worker(services: Services) -> None:
    job = await a_queued_expand(services)
    await an_engine(services).claim(job.message)
    await run_out(services, job.id)
    await an_engine(services).maintenance.rescue()

    assert (await services.jobs.cancel(job.id)).status == "queued"
    assert (await volume_row(services, job.volume_id))["state"] == "expanding"


async def test_running_job_can_be_cancelled_twice(services: Services) -> None:
    job = await a_queued_expand(services)
    await an_engine(services).claim(job.message)
    await services.jobs.cancel(job.id)

    assert (await services.jobs.cancel(job.id)).status == "running"


async def test_ended_job_cannot_be_cancelled(services: Services) -> None:
    job = await a_queued_expand(services)
    for status in sorted(ENDED):
        await set_job(services, job.id, f"status = '{status}', finished_at = now()")
        before = await everything(services)
        with pytest.raises(JobEnded) as refused:
            await services.jobs.cancel(job.id)

        assert refused.value.details == {"job_status": status}
        assert await everything(services) == before


async def test_unknown_job_cannot_be_cancelled(services: Services) -> None:
    with pytest.raises(JobNotFound):
        await services.jobs.cancel(uuid4())


async def test_race_of_cancel_and_claim_leaves_a_legal_state(services: Services) -> None:
    engine = an_engine(services)
    jobs = [await a_queued_expand(services) for _ in range(30)]
    calls = [call for job in jobs for call in (engine.claim(job.message), services.jobs.cancel(job.id))]
    await asyncio.gather(*calls)
    states = await sql(
        services,
        "SELECT DISTINCT j.status, v.state, j.worker_id IS NULL, j.finished_at IS NULL, j.cancel_requested_at IS NULL"
        " FROM jobs j JOIN volumes v ON v.id = j.volume_id",
    )

    assert set(states) <= {("cancelled", "available", True, False, False), ("running", "expanding", False, True, False)}


async def test_one_of_many_concurrent_cancels_succeeds_and_the_others_get_job_ended(
    services: Services,
) -> None:
    job = await a_queued_expand(services)
    results = await asyncio.gather(*(services.jobs.cancel(job.id) for _ in range(20)), return_exceptions=True)

    assert sorted(type(result).__name__ for result in results) == ["Job"] + ["JobEnded"] * 19
    assert (await volume_row(services, job.volume_id))["version"] == 3


async def test_volume_can_be_deleted_after_a_cancelled_delete(services: Services) -> None:
    volume = await a_volume(services)
    job = await services.volumes.request_delete(volume.id)
    await services.jobs.cancel(job.id)

    assert (await volume_row(services, volume.id))["state"] == "error"
    assert (await services.volumes.request_delete(volume.id)).status == "queued"
