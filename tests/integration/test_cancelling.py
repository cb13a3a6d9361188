"""A user asks for a job's end: at once if it never started, otherwise its worker is told."""

import asyncio
from uuid import uuid4

import pytest

from domain.errors import JobEnded, JobNotFound
from domain.jobs.outcomes import RetryIn
from domain.jobs.states import ENDED
from domain.services import Services
from domain.volumes.growth import Growth
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


async def test_a_job_that_never_started_ends_at_once_and_lets_its_volume_go(services: Services) -> None:
    job = await a_queued_expand(services)
    cancelled = await services.jobs.cancel(job.id)
    volume = await volume_row(services, job.volume_id)

    assert (cancelled.status, cancelled.finished_at is not None) == ("cancelled", True)
    assert cancelled.cancel_requested_at is not None
    assert (volume["state"], volume["job_id"]) == ("available", None)


async def test_what_is_answered_is_what_stands_in_the_row(services: Services) -> None:
    job = await a_queued_expand(services)
    answered = await services.jobs.cancel(job.id)
    found = await row(services, job.id)

    assert (answered.version, answered.status, answered.finished_at) == (found.version, found.status, found.finished_at)


async def test_a_cancelled_job_is_claimed_by_nobody(services: Services) -> None:
    job = await a_queued_expand(services)
    await services.jobs.cancel(job.id)

    assert await an_engine(services).claim(job.dispatch) is None


async def test_after_a_cancellation_the_next_operation_may_come(services: Services) -> None:
    job = await a_queued_expand(services)
    await services.jobs.cancel(job.id)
    assert job.volume_id is not None

    assert (await services.volumes.request_expand(job.volume_id, Growth(percent=1))).status == "queued"


async def test_a_job_at_work_goes_on_until_its_worker_hears_of_it(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    await engine.claim(job.dispatch)
    assert (await services.jobs.cancel(job.id)).status == "running"
    renewed = await engine.renew([job.id])

    assert [renewal.cancel_requested for renewal in renewed.renewals] == [True]
    assert (await volume_row(services, job.volume_id))["state"] == "expanding"


async def test_a_job_that_waits_for_its_next_try_is_rung_at_once_for_its_end(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    claim = await engine.claim(job.dispatch)
    assert claim is not None
    await engine.settle(claim.job, RetryIn(1000, {}))
    waiting = await services.jobs.cancel(job.id)
    again = await engine.claim(waiting.dispatch)

    assert (waiting.status, waiting.epoch) == ("queued", 1)
    assert await services.queue.missing([waiting.dispatch]) == []
    assert again is not None
    assert again.job.cancel_requested_at is not None


async def test_if_that_ring_is_lost_it_is_found_before_the_next_try_would_come(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    claim = await engine.claim(job.dispatch)
    assert claim is not None
    await engine.settle(claim.job, RetryIn(1000, {}))
    await services.jobs.cancel(job.id)
    await services.queue.redis.flushall()
    await set_job(services, job.id, "dispatched_at = now() - interval '1 minute'")

    assert await engine.redispatch_lost() == 1


async def test_a_job_that_was_rescued_may_have_left_traces_so_a_worker_ends_it(services: Services) -> None:
    job = await a_queued_expand(services)
    await an_engine(services).claim(job.dispatch)
    await run_out(services, job.id)
    await an_engine(services).rescue()

    assert (await services.jobs.cancel(job.id)).status == "queued"
    assert (await volume_row(services, job.volume_id))["state"] == "expanding"


async def test_asking_twice_for_the_end_of_a_job_at_work_is_allowed(services: Services) -> None:
    job = await a_queued_expand(services)
    await an_engine(services).claim(job.dispatch)
    await services.jobs.cancel(job.id)

    assert (await services.jobs.cancel(job.id)).status == "running"


async def test_what_has_ended_cannot_be_cancelled(services: Services) -> None:
    job = await a_queued_expand(services)
    for status in sorted(ENDED):
        await set_job(services, job.id, f"status = '{status}', finished_at = now()")
        before = await everything(services)
        with pytest.raises(JobEnded) as refused:
            await services.jobs.cancel(job.id)

        assert refused.value.details == {"job_status": status}
        assert await everything(services) == before


async def test_a_job_that_nobody_knows_cannot_be_cancelled(services: Services) -> None:
    with pytest.raises(JobNotFound):
        await services.jobs.cancel(uuid4())


async def test_whoever_is_first_of_cancel_and_claim_the_end_is_a_legal_one(services: Services) -> None:
    engine = an_engine(services)
    jobs = [await a_queued_expand(services) for _ in range(30)]
    together = [part for job in jobs for part in (engine.claim(job.dispatch), services.jobs.cancel(job.id))]
    await asyncio.gather(*together)
    ends = await sql(
        services,
        "SELECT DISTINCT j.status, v.state, j.worker_id IS NULL, j.finished_at IS NULL, j.cancel_requested_at IS NULL"
        " FROM jobs j JOIN volumes v ON v.id = j.volume_id",
    )

    assert set(ends) <= {("cancelled", "available", True, False, False), ("running", "expanding", False, True, False)}


async def test_of_many_who_cancel_a_waiting_job_one_does_and_the_others_hear_that_it_has_ended(
    services: Services,
) -> None:
    job = await a_queued_expand(services)
    ends = await asyncio.gather(*(services.jobs.cancel(job.id) for _ in range(20)), return_exceptions=True)

    assert sorted(type(end).__name__ for end in ends) == ["Job"] + ["JobEnded"] * 19
    assert (await volume_row(services, job.volume_id))["version"] == 3


async def test_a_cancelled_delete_leaves_a_volume_that_can_be_deleted_again(services: Services) -> None:
    volume = await a_volume(services)
    job = await services.volumes.request_delete(volume.id)
    await services.jobs.cancel(job.id)

    assert (await volume_row(services, volume.id))["state"] == "error"
    assert (await services.volumes.request_delete(volume.id)).status == "queued"
