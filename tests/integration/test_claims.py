"""A job is claimed by one worker at a time, and only by a message of its current epoch."""

import asyncio
from uuid import uuid4

import pytest

from domain.jobs.attempt import ClaimedJob, Released, RetryIn
from domain.jobs.engine import JobEngine
from domain.jobs.model import Job, JobMessage
from domain.jobs.states import ENDED
from domain.jobs.store.leases import LeaseRepository
from domain.services import Services
from tests.integration.job_builders import a_queued_expand, an_engine, row, run_out, set_job, sql

KINDS = ("volume.create", "volume.expand", "volume.delete")


async def claimed(engine: JobEngine, job: Job) -> ClaimedJob:
    claim = await engine.claim(job.message)
    assert claim is not None
    return claim.job


async def test_one_of_fifty_concurrent_claims_succeeds(services: Services) -> None:
    job = await a_queued_expand(services)
    engines = [an_engine(services) for _ in range(50)]
    claims = await asyncio.gather(*(engine.claim(job.message) for engine in engines))
    found = await row(services, job.id)

    assert len([claim for claim in claims if claim is not None]) == 1
    assert (found.status, found.attempt) == ("running", 1)


async def test_claim_stores_the_worker_and_the_lease(services: Services) -> None:
    engine = an_engine(services)
    job = await claimed(engine, await a_queued_expand(services))
    ((remaining,),) = await sql(services, "SELECT extract(epoch FROM lease_expires_at - now()) FROM jobs")

    assert job.worker_id == engine._worker.id
    assert 0 < remaining <= services.settings.lease_seconds
    assert (await row(services, job.id)).started_at is not None


async def test_claim_returns_the_updated_row(services: Services) -> None:
    job = await claimed(an_engine(services), await a_queued_expand(services))
    found = await row(services, job.id)

    assert job._replace(queue_ms=0) == ClaimedJob.from_row(found)
    assert (found.status, found.attempt, found.version, job.fence) == ("running", 1, 2, (2, 0))


@pytest.mark.parametrize(
    ("run_at", "expected_ms"), [("now() - interval '90 s'", 90_000), ("now() + interval '90 s'", 0)]
)
async def test_claim_returns_the_time_in_the_queue(services: Services, run_at: str, expected_ms: int) -> None:
    job = await a_queued_expand(services)
    await set_job(services, job.id, f"run_at = {run_at}")

    assert expected_ms <= (await claimed(an_engine(services), job)).queue_ms < expected_ms + 5_000


async def test_message_of_another_epoch_claims_nothing(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    await set_job(services, job.id, "epoch = 1")

    assert [await engine.claim(JobMessage(job.id, epoch)) for epoch in (0, 2)] == [None, None]
    assert (await row(services, job.id)).status == "queued"


async def test_unknown_job_cannot_be_claimed(services: Services) -> None:
    assert await an_engine(services).claim(JobMessage(uuid4(), 0)) is None


async def test_ended_job_cannot_be_claimed(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    for status in sorted(ENDED):
        await set_job(services, job.id, f"status = '{status}', finished_at = now()")

        assert await engine.claim(job.message) is None


async def test_job_of_an_unknown_kind_is_left_to_newer_workers(services: Services) -> None:
    job = await a_queued_expand(services)
    await set_job(services, job.id, "kind = 'volume.paint'")

    assert await an_engine(services).claim(job.message) is None
    assert (await row(services, job.id)).status == "queued"


async def test_second_claim_counts_the_attempt_and_keeps_the_first_start(services: Services) -> None:
    job = await a_queued_expand(services)
    first = await claimed(an_engine(services), job)
    started_at = (await row(services, job.id)).started_at
    await run_out(services, job.id)
    await an_engine(services).maintenance.rescue()
    second = await claimed(an_engine(services), await row(services, job.id))

    assert (first.attempt, second.attempt) == (1, 2)
    assert (await row(services, job.id)).started_at == started_at
    assert (first.epoch, second.epoch) == (0, 1)
    assert first.worker_id != second.worker_id


async def test_each_claim_has_a_higher_fence_than_the_previous_one(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    fences = []
    for outcome in (RetryIn(0, {}), RetryIn(0, {}, free=True), Released()):
        running = await claimed(engine, await row(services, job.id))
        fences.append(running.fence)
        await engine.settle(running, outcome)
    fences.append(ClaimedJob.from_row(await row(services, job.id)).fence)

    assert fences == sorted(set(fences))


async def test_many_jobs_are_claimed_in_one_statement(services: Services) -> None:
    jobs = [await a_queued_expand(services) for _ in range(20)]
    await set_job(services, jobs[0].id, "epoch = 5")
    await set_job(services, jobs[1].id, "kind = 'volume.paint'")
    async with services.database.transaction() as session:
        claims = await LeaseRepository(session).claim(
            [job.message for job in jobs] + [JobMessage(uuid4(), 0)],
            worker_id=uuid4(),
            kinds=KINDS,
            backends=("memory",),
            lease=3,
        )

    assert {job.id for job in claims} == {job.id for job in jobs[2:]}
    assert await sql(services, "SELECT count(*) FROM jobs WHERE status = 'running'") == [(18,)]


async def test_message_delivered_again_claims_nothing(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    await claimed(engine, job)

    assert await engine.claim(job.message) is None
