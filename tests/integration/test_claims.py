"""A job is claimed by one worker at a time, and only by the ring that is the present one."""

import asyncio
from uuid import uuid4

from domain.jobs.claimed import ClaimedJob
from domain.jobs.engine import JobEngine
from domain.jobs.model import Dispatch, Job
from domain.jobs.outcomes import Released, RetryIn
from domain.jobs.states import ENDED
from domain.jobs.store.leases import LeaseRepository
from domain.services import Services
from tests.integration.job_builders import a_queued_expand, an_engine, row, run_out, set_job, sql

KINDS = ("volume.create", "volume.expand", "volume.delete")


async def claimed(engine: JobEngine, job: Job) -> ClaimedJob:
    claim = await engine.claim(job.dispatch)
    assert claim is not None
    return claim.job


async def test_of_fifty_claims_at_once_one_succeeds(services: Services) -> None:
    job = await a_queued_expand(services)
    foremen = [an_engine(services) for _ in range(50)]
    claims = await asyncio.gather(*(engine.claim(job.dispatch) for engine in foremen))
    found = await row(services, job.id)

    assert len([claim for claim in claims if claim is not None]) == 1
    assert (found.status, found.attempt) == ("running", 1)


async def test_a_claim_writes_down_who_and_until_when(services: Services) -> None:
    engine = an_engine(services)
    job = await claimed(engine, await a_queued_expand(services))
    ((left,),) = await sql(services, "SELECT extract(epoch FROM lease_expires_at - now()) FROM jobs")

    assert job.worker_id == engine._worker.id
    assert 0 < left <= services.settings.lease_seconds
    assert (await row(services, job.id)).started_at is not None


async def test_the_row_that_is_claimed_is_the_row_as_it_now_stands(services: Services) -> None:
    job = await claimed(an_engine(services), await a_queued_expand(services))
    found = await row(services, job.id)

    assert job == ClaimedJob.from_row(found)
    assert (found.status, found.attempt, found.version, job.fence) == ("running", 1, 2, (2, 0))


async def test_another_ring_than_the_present_one_claims_nothing(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    await set_job(services, job.id, "epoch = 1")

    assert [await engine.claim(Dispatch(job.id, dispatch)) for dispatch in (0, 2)] == [None, None]
    assert (await row(services, job.id)).status == "queued"


async def test_a_job_that_nobody_knows_is_claimed_by_nobody(services: Services) -> None:
    assert await an_engine(services).claim(Dispatch(uuid4(), 0)) is None


async def test_what_has_ended_is_not_claimed(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    for status in sorted(ENDED):
        await set_job(services, job.id, f"status = '{status}', finished_at = now()")

        assert await engine.claim(job.dispatch) is None


async def test_a_kind_from_a_newer_version_is_left_for_a_newer_worker(services: Services) -> None:
    job = await a_queued_expand(services)
    await set_job(services, job.id, "kind = 'volume.paint'")

    assert await an_engine(services).claim(job.dispatch) is None
    assert (await row(services, job.id)).status == "queued"


async def test_the_second_claim_counts_on_and_keeps_the_first_start(services: Services) -> None:
    job = await a_queued_expand(services)
    first = await claimed(an_engine(services), job)
    started_at = (await row(services, job.id)).started_at
    await run_out(services, job.id)
    await an_engine(services).rescue()
    second = await claimed(an_engine(services), await row(services, job.id))

    assert (first.attempt, second.attempt) == (1, 2)
    assert (await row(services, job.id)).started_at == started_at
    assert (first.epoch, second.epoch) == (0, 1)
    assert first.worker_id != second.worker_id


async def test_each_claim_has_a_higher_fence_than_the_one_before(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    fences = []
    for outcome in (RetryIn(0, {}), RetryIn(0, {}, free=True), Released()):
        at_work = await claimed(engine, await row(services, job.id))
        fences.append(at_work.fence)
        await engine.settle(at_work, outcome)
    fences.append(ClaimedJob.from_row(await row(services, job.id)).fence)

    assert fences == sorted(set(fences))


async def test_many_jobs_are_claimed_in_one_statement(services: Services) -> None:
    jobs = [await a_queued_expand(services) for _ in range(20)]
    await set_job(services, jobs[0].id, "epoch = 5")
    await set_job(services, jobs[1].id, "kind = 'volume.paint'")
    async with services.database.transaction() as session:
        got = await LeaseRepository(session).claim(
            [job.dispatch for job in jobs] + [Dispatch(uuid4(), 0)], worker_id=uuid4(), kinds=KINDS, lease=3
        )

    assert {job.id for job in got} == {job.id for job in jobs[2:]}
    assert await sql(services, "SELECT count(*) FROM jobs WHERE status = 'running'") == [(18,)]


async def test_a_message_that_is_delivered_twice_is_claimed_once(services: Services) -> None:
    job, engine = await a_queued_expand(services), an_engine(services)
    await claimed(engine, job)

    assert await engine.claim(job.dispatch) is None
