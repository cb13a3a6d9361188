"""Orphans are put back into the queue; those that cost every worker are buried, and their volumes let go."""

import asyncio

from sqlalchemy import text

from domain.jobs.claimed import ClaimedJob
from domain.jobs.engine import JobEngine
from domain.jobs.retry import WORKER_LOST
from domain.jobs.store.jobs import JobRepository
from domain.jobs.store.orphans import EXTRA_CLAIMS
from domain.services import Services
from tests.integration.job_builders import (
    MIB,
    a_queued_expand,
    an_engine,
    everything,
    row,
    run_out,
    set_job,
    sql,
    volume_row,
)


async def at_work(services: Services, engine: JobEngine) -> ClaimedJob:
    claim = await engine.claim((await a_queued_expand(services)).dispatch)
    assert claim is not None
    return claim.job


async def test_an_orphan_goes_back_into_the_queue_with_its_attempt_spent(services: Services) -> None:
    job = await at_work(services, an_engine(services))
    await run_out(services, job.id)

    assert await an_engine(services).rescue() == 1
    found = await row(services, job.id)
    assert (found.status, found.epoch, found.attempt, found.error) == ("queued", 1, 1, WORKER_LOST)
    assert (found.dispatched_at, found.lease_expires_at) == (None, None)
    assert (await volume_row(services, job.volume_id))["state"] == "expanding"


async def test_a_rescued_job_is_rung_and_can_be_claimed(services: Services) -> None:
    job, engine = await at_work(services, an_engine(services)), an_engine(services)
    await run_out(services, job.id)
    await engine.rescue()

    assert await engine.dispatch_due() == 1
    assert await engine.claim((await row(services, job.id)).dispatch) is not None


async def test_a_job_whose_lease_lasts_is_left_alone(services: Services) -> None:
    await at_work(services, an_engine(services))
    before = await everything(services)

    assert await an_engine(services).rescue() == 0
    assert await everything(services) == before


async def test_a_queued_job_is_no_orphan(services: Services) -> None:
    await a_queued_expand(services)

    assert await an_engine(services).rescue() == 0


async def test_a_renewed_lease_is_no_orphan(services: Services) -> None:
    engine = an_engine(services)
    job = await at_work(services, engine)
    await run_out(services, job.id)
    renewed = await engine.renew([job.id])

    assert [renewal.job_id for renewal in renewed.renewals] == [job.id]
    assert await an_engine(services).rescue() == 0


async def test_a_rescued_job_cannot_be_renewed_by_whoever_lost_it(services: Services) -> None:
    engine = an_engine(services)
    job = await at_work(services, engine)
    await run_out(services, job.id)
    await an_engine(services).rescue()

    renewed = await engine.renew([job.id])

    assert (list(renewed.renewals), renewed.lost) == ([], frozenset({job.id}))


async def test_a_row_that_somebody_has_locked_costs_no_other_its_lease_and_is_not_lost(services: Services) -> None:
    engine = an_engine(services)
    held, free = await at_work(services, engine), await at_work(services, engine)
    async with services.database.transaction() as session:
        await JobRepository(session).get_for_update(held.id)
        renewed = await asyncio.create_task(engine.renew([held.id, free.id]))

    assert ([renewal.job_id for renewal in renewed.renewals], renewed.lost) == ([free.id], frozenset())


async def test_many_who_rescue_at_once_rescue_each_job_once(services: Services) -> None:
    engine = an_engine(services)
    jobs = [await at_work(services, engine) for _ in range(20)]
    await run_out(services, *(job.id for job in jobs))
    rescued = await asyncio.gather(*(an_engine(services).rescue() for _ in range(8)))

    assert sum(rescued) == 20
    assert await sql(services, "SELECT DISTINCT status, epoch, attempt FROM jobs") == [("queued", 1, 1)]


async def test_an_orphan_that_somebody_else_deals_with_is_passed_over_without_waiting(services: Services) -> None:
    engine = an_engine(services)
    jobs = [await at_work(services, engine) for _ in range(2)]
    await run_out(services, *(job.id for job in jobs))
    async with services.database.transaction() as session:
        await session.execute(text("SELECT id FROM jobs WHERE id = :id FOR UPDATE"), {"id": jobs[0].id})
        async with asyncio.timeout(4):
            rescued = await asyncio.create_task(an_engine(services).rescue())

    assert rescued == 1
    assert (await row(services, jobs[0].id)).status == "running"


async def test_after_its_attempts_an_orphan_gets_some_last_chances(services: Services) -> None:
    job = await at_work(services, an_engine(services))
    last = job.max_attempts + EXTRA_CLAIMS - 1
    await set_job(services, job.id, f"attempt = {last}")
    await run_out(services, job.id)

    assert await an_engine(services).rescue() == 1
    assert (await row(services, job.id)).status == "queued"


async def test_an_orphan_without_hope_is_buried_and_its_volume_let_go(services: Services) -> None:
    job = await at_work(services, an_engine(services))
    await set_job(services, job.id, f"attempt = {job.max_attempts + EXTRA_CLAIMS}")
    await run_out(services, job.id)

    assert await an_engine(services).rescue() == 1
    found, volume = await row(services, job.id), await volume_row(services, job.volume_id)
    assert (found.status, found.error, found.finished_at is not None) == ("failed", WORKER_LOST, True)
    assert (volume["state"], volume["size"], volume["job_id"]) == ("available", MIB, None)


async def test_many_who_bury_at_once_bury_once(services: Services) -> None:
    job = await at_work(services, an_engine(services))
    await set_job(services, job.id, f"attempt = {job.max_attempts + EXTRA_CLAIMS}")
    await run_out(services, job.id)
    buried = await asyncio.gather(*(an_engine(services).rescue() for _ in range(8)))

    assert sum(buried) == 1
    assert (await volume_row(services, job.volume_id))["version"] == 3


async def test_a_job_that_kills_every_worker_ends(services: Services) -> None:
    job = await a_queued_expand(services)
    claims = 0
    while not (await row(services, job.id)).ended:
        assert await an_engine(services).claim((await row(services, job.id)).dispatch) is not None
        claims += 1
        await run_out(services, job.id)
        await an_engine(services).rescue()

    assert claims == job.max_attempts + EXTRA_CLAIMS
    assert (await row(services, job.id)).error == WORKER_LOST


async def test_an_orphan_of_a_kind_from_a_newer_version_is_not_buried_by_an_older_worker(services: Services) -> None:
    foreign, own = [await at_work(services, an_engine(services)) for _ in range(2)]
    hopeless = f"attempt = {own.max_attempts + EXTRA_CLAIMS}"
    await set_job(services, foreign.id, f"kind = 'volume.paint', {hopeless}")
    await set_job(services, own.id, hopeless)
    await run_out(services, foreign.id, own.id)

    assert await an_engine(services).rescue() == 1
    assert (await row(services, foreign.id)).status == "running"


async def test_a_worker_is_on_the_list_from_its_first_beat_to_its_goodbye(services: Services) -> None:
    engine = an_engine(services)
    await engine.renew([])
    await engine.renew([])
    assert await sql(services, "SELECT id, host FROM workers") == [(engine._worker.id, "test")]
    await engine.deregister()

    assert await sql(services, "SELECT id FROM workers") == []


async def test_a_worker_that_went_silent_is_struck_off_by_the_others(services: Services) -> None:
    silent, lively = an_engine(services), an_engine(services)
    await silent.renew([])
    await lively.renew([])
    await sql(
        services, "UPDATE workers SET heartbeat_at = now() - interval '2 hours' WHERE id = :id", id=silent._worker.id
    )
    await lively.rescue()

    assert await sql(services, "SELECT id FROM workers") == [(lively._worker.id,)]
