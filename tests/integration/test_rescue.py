"""Orphans are requeued; those that have used up their claims fail, and their volumes are released."""

import asyncio

from sqlalchemy import text

from domain.jobs.attempt import WORKER_LOST, ClaimedJob
from domain.jobs.engine import JobEngine
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


async def a_running_expand(services: Services, engine: JobEngine) -> ClaimedJob:
    """Request an expansion and claim it."""
    claim = await engine.claim((await a_queued_expand(services)).message)
    assert claim is not None
    return claim.job


async def test_orphan_is_requeued_with_its_attempt_spent(services: Services) -> None:
    job = await a_running_expand(services, an_engine(services))
    await run_out(services, job.id)

    assert await an_engine(services).maintenance.rescue() == 1
    found = await row(services, job.id)
    assert (found.status, found.epoch, found.attempt, found.error) == ("queued", 1, 1, WORKER_LOST)
    assert (found.dispatched_at, found.lease_expires_at) == (None, None)
    assert (await volume_row(services, job.volume_id))["state"] == "expanding"


async def test_rescued_job_is_dispatched_and_can_be_claimed(services: Services) -> None:
    job, engine = await a_running_expand(services, an_engine(services)), an_engine(services)
    await run_out(services, job.id)
    await engine.maintenance.rescue()

    assert await engine.maintenance.dispatch_due() == 1
    assert await engine.claim((await row(services, job.id)).message) is not None


async def test_job_with_a_valid_lease_is_not_rescued(services: Services) -> None:
    await a_running_expand(services, an_engine(services))
    before = await everything(services)

    assert await an_engine(services).maintenance.rescue() == 0
    assert await everything(services) == before


async def test_queued_job_is_not_rescued(services: Services) -> None:
    await a_queued_expand(services)

    assert await an_engine(services).maintenance.rescue() == 0


async def test_renewed_lease_is_not_rescued(services: Services) -> None:
    engine = an_engine(services)
    job = await a_running_expand(services, engine)
    await run_out(services, job.id)
    renewed = await engine.renew([job.id])

    assert [renewal.job_id for renewal in renewed.renewals] == [job.id]
    assert await an_engine(services).maintenance.rescue() == 0


async def test_worker_cannot_renew_a_job_that_was_rescued(services: Services) -> None:
    engine = an_engine(services)
    job = await a_running_expand(services, engine)
    await run_out(services, job.id)
    await an_engine(services).maintenance.rescue()

    renewed = await engine.renew([job.id])

    assert (list(renewed.renewals), renewed.lost) == ([], frozenset({job.id}))


async def test_locked_row_is_not_lost_and_does_not_block_other_renewals(services: Services) -> None:
    engine = an_engine(services)
    locked, unlocked = await a_running_expand(services, engine), await a_running_expand(services, engine)
    async with services.database.transaction() as session:
        await JobRepository(session).get_for_update(locked.id)
        renewed = await asyncio.create_task(engine.renew([locked.id, unlocked.id]))

    assert ([renewal.job_id for renewal in renewed.renewals], renewed.lost) == ([unlocked.id], frozenset())


async def test_concurrent_rescues_requeue_each_job_once(services: Services) -> None:
    engine = an_engine(services)
    jobs = [await a_running_expand(services, engine) for _ in range(20)]
    await run_out(services, *(job.id for job in jobs))
    rescued = await asyncio.gather(*(an_engine(services).maintenance.rescue() for _ in range(8)))

    assert sum(rescued) == 20
    assert await sql(services, "SELECT DISTINCT status, epoch, attempt FROM jobs") == [("queued", 1, 1)]


async def test_locked_orphan_is_skipped_without_waiting(services: Services) -> None:
    engine = an_engine(services)
    jobs = [await a_running_expand(services, engine) for _ in range(2)]
    await run_out(services, *(job.id for job in jobs))
    async with services.database.transaction() as session:
        await session.execute(text("SELECT id FROM jobs WHERE id = :id FOR UPDATE"), {"id": jobs[0].id})
        async with asyncio.timeout(4):
            rescued = await asyncio.create_task(an_engine(services).maintenance.rescue())

    assert rescued == 1
    assert (await row(services, jobs[0].id)).status == "running"


async def test_orphan_gets_extra_claims_beyond_its_attempts(services: Services) -> None:
    job = await a_running_expand(services, an_engine(services))
    last = job.max_attempts + EXTRA_CLAIMS - 1
    await set_job(services, job.id, f"attempt = {last}")
    await run_out(services, job.id)

    assert await an_engine(services).maintenance.rescue() == 1
    assert (await row(services, job.id)).status == "queued"


async def test_exhausted_orphan_fails_and_releases_its_volume(services: Services) -> None:
    job = await a_running_expand(services, an_engine(services))
    await set_job(services, job.id, f"attempt = {job.max_attempts + EXTRA_CLAIMS}")
    await run_out(services, job.id)

    assert await an_engine(services).maintenance.rescue() == 1
    found, volume = await row(services, job.id), await volume_row(services, job.volume_id)
    assert (found.status, found.error, found.finished_at is not None) == ("failed", WORKER_LOST, True)
    assert (volume["state"], volume["size"], volume["job_id"]) == ("available", MIB, None)


async def test_concurrent_rescues_fail_an_exhausted_orphan_once(services: Services) -> None:
    job = await a_running_expand(services, an_engine(services))
    await set_job(services, job.id, f"attempt = {job.max_attempts + EXTRA_CLAIMS}")
    await run_out(services, job.id)
    counts = await asyncio.gather(*(an_engine(services).maintenance.rescue() for _ in range(8)))

    assert sum(counts) == 1
    assert (await volume_row(services, job.volume_id))["version"] == 3


async def test_job_that_kills_every_worker_fails_in_the_end(services: Services) -> None:
    job = await a_queued_expand(services)
    claims = 0
    while not (await row(services, job.id)).ended:
        assert await an_engine(services).claim((await row(services, job.id)).message) is not None
        claims += 1
        await run_out(services, job.id)
        await an_engine(services).maintenance.rescue()

    assert claims == job.max_attempts + EXTRA_CLAIMS
    assert (await row(services, job.id)).error == WORKER_LOST


async def test_exhausted_orphan_of_an_unknown_kind_is_left_to_newer_workers(services: Services) -> None:
    unknown, known = [await a_running_expand(services, an_engine(services)) for _ in range(2)]
    exhausted = f"attempt = {known.max_attempts + EXTRA_CLAIMS}"
    await set_job(services, unknown.id, f"kind = 'volume.paint', {exhausted}")
    await set_job(services, known.id, exhausted)
    await run_out(services, unknown.id, known.id)

    assert await an_engine(services).maintenance.rescue() == 1
    assert (await row(services, unknown.id)).status == "running"


async def test_worker_is_registered_from_its_first_heartbeat_to_its_shutdown(services: Services) -> None:
    engine = an_engine(services)
    await engine.renew([])
    await engine.renew([])
    assert await sql(services, "SELECT id, host FROM workers") == [(engine._worker.id, "test")]
    await engine.deregister()

    assert await sql(services, "SELECT id FROM workers") == []


async def test_silent_worker_is_removed_by_the_others(services: Services) -> None:
    silent, live = an_engine(services), an_engine(services)
    await silent.renew([])
    await live.renew([])
    await sql(
        services, "UPDATE workers SET heartbeat_at = now() - interval '2 hours' WHERE id = :id", id=silent._worker.id
    )
    await live.maintenance.rescue()

    assert await sql(services, "SELECT id FROM workers") == [(live._worker.id,)]
