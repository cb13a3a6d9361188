"""What is old is forgotten in small batches, by any number of workers at once; what is needed is kept."""

import asyncio
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text

from domain.bulk.ledger import clear_ledgers
from domain.bulk.states import ItemStatus
from domain.db.pagination import PageRequest
from domain.errors import JobNotFound
from domain.jobs.model import Job
from domain.jobs.store import retention as retention_module
from domain.jobs.store.jobs import JobFilter
from domain.jobs.store.retention import Pruned, Retention
from domain.services import Services
from tests.integration.job_builders import a_queued_expand, sql

INSERT_JOB = (
    "INSERT INTO jobs (id, kind, status, version, params, attempt, max_attempts, epoch, started_at, finished_at,"
    " parent_id, retry_of, total) VALUES (:id, 'bulk.expand', :status, 1, '{}', 1, 8, 0, now(),"
    " now() - make_interval(days => :days),"
    " :parent_id, :retry_of, 1)"
)


async def a_job(
    services: Services, days: int, *, status: str = "partial", parent: UUID | None = None, retries: UUID | None = None
) -> UUID:
    """A job that ended so many days ago."""
    job_id = uuid4()
    ended = None if status in ("queued", "running") else days
    await sql(services, INSERT_JOB, id=job_id, status=status, days=ended, parent_id=parent, retry_of=retries)
    return job_id


async def a_ledger(services: Services, job_id: UUID, count: int) -> None:
    await sql(
        services,
        "INSERT INTO job_items (job_id, volume_id, status, code)"
        f" SELECT :id, gen_random_uuid(), 'failed', 'storage-full' FROM generate_series(1, {count})",
        id=job_id,
    )


async def a_key(services: Services, key: str, expires: str) -> None:
    await sql(
        services,
        "INSERT INTO idempotency_keys (caller, key, route, fingerprint, expires_at)"
        f" VALUES ('', :key, 'r', 'f', now() + interval '{expires}')",
        key=key,
    )


async def left(services: Services) -> set[UUID]:
    return {row[0] for row in await sql(services, "SELECT id FROM jobs")}


async def items(services: Services) -> int:
    return int((await sql(services, "SELECT count(*) FROM job_items"))[0][0])


async def pruned_to_the_end(services: Services) -> int:
    """Prune until there is no more; returns in how many rounds."""
    rounds = 1
    while (await services.retention.prune()).more:
        rounds += 1
    return rounds


async def test_jobs_that_ended_long_ago_are_forgotten_and_others_kept(services: Services) -> None:
    for status in ("succeeded", "partial", "failed", "cancelled"):
        await a_job(services, 31, status=status)
    young = await a_job(services, 29)
    live = await a_queued_expand(services)
    await sql(services, "UPDATE jobs SET created_at = now() - interval '1 year'")

    assert await services.retention.prune() == Pruned(4, more=False)
    assert await left(services) == {young, live.id}


async def test_a_job_that_was_pruned_is_not_found(services: Services) -> None:
    job_id = await a_job(services, 31)
    await services.retention.prune()

    with pytest.raises(JobNotFound):
        await services.jobs.get(job_id)
    with pytest.raises(JobNotFound):
        await services.bulk.items(job_id, None, after=None, limit=1)
    with pytest.raises(JobNotFound):
        await services.jobs.retry(job_id)


async def test_a_job_goes_with_its_lanes_and_its_ledger(services: Services) -> None:
    old, young = await a_job(services, 31), await a_job(services, 29)
    for parent in (old, young):
        await a_job(services, 40, status="succeeded", parent=parent)
        await a_ledger(services, parent, 3)
    await services.retention.prune()

    assert len(await left(services)) == 2
    assert await items(services) == 3


@pytest.mark.parametrize("status", ["queued", "running"])
async def test_lanes_of_a_live_job_and_a_job_with_a_live_lane_are_kept(services: Services, status: str) -> None:
    live = await a_job(services, 0, status=status)
    await a_job(services, 31, parent=live)
    ended = await a_job(services, 31)
    await a_job(services, 0, status=status, parent=ended)
    await services.retention.prune()

    assert len(await left(services)) == 4


async def test_a_job_is_kept_as_long_as_a_retry_that_may_read_its_ledger(services: Services) -> None:
    """Also the one before the one before: a retry that ended without a plan passes on whose ledger is to be read."""
    first = await a_job(services, 90)
    second = await a_job(services, 60, retries=first)
    third = await a_job(services, 0, status="queued", retries=second)
    await a_ledger(services, first, 2)
    await services.retention.prune()
    assert (await left(services), await items(services)) == ({first, second, third}, 2)
    await sql(
        services,
        "UPDATE jobs SET status = 'failed', finished_at = now() - interval '40 days' WHERE id = :id",
        id=third,
    )

    for remaining in ({first, second}, {first}, set()):
        await services.retention.prune()
        assert await left(services) == remaining


async def test_a_retry_that_comes_while_the_job_is_being_locked_saves_it(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row itself does not change by being retried, so PostgreSQL does not look at it again by itself."""
    job_id = await a_job(services, 31)
    await a_job(services, 0, status="queued", retries=job_id)
    expired = retention_module._expired
    before_the_retry = select(Job.id).where(Job.id == job_id)
    views = iter([before_the_retry])
    monkeypatch.setattr(retention_module, "_expired", lambda age: next(views, expired(age)))

    assert await services.retention.prune() == Pruned(0, more=False)
    assert job_id in await left(services)


async def test_a_long_ledger_goes_in_batches_over_several_rounds(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "_ITEMS_PER_BATCH", 10)
    job_id = await a_job(services, 31)
    await a_ledger(services, job_id, 95)

    assert await services.retention.prune() == Pruned(50, more=True)
    assert (await left(services), await items(services)) == ({job_id}, 45)
    assert await services.retention.prune() == Pruned(46, more=False)
    assert await left(services) == set()


async def test_a_job_whose_ledger_is_half_gone_can_be_neither_seen_nor_retried(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "_ITEMS_PER_BATCH", 10)
    job_id = await a_job(services, 31)
    await a_ledger(services, job_id, 95)
    await services.retention.prune()
    page = await services.jobs.list_jobs(JobFilter(), PageRequest("jobs", 10))

    assert page.items == []
    with pytest.raises(JobNotFound):
        await services.jobs.get(job_id)
    with pytest.raises(JobNotFound):
        await services.jobs.retry(job_id)


async def test_many_jobs_go_in_batches(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "_JOBS_PER_BATCH", 2)
    for _ in range(25):
        await a_job(services, 31)

    assert await pruned_to_the_end(services) == 3
    assert await left(services) == set()


async def test_many_who_prune_at_once_do_not_wait_for_one_another(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "_JOBS_PER_BATCH", 5)
    for _ in range(60):
        await a_ledger(services, await a_job(services, 31), 2)
    pruned = await asyncio.gather(*(services.retention.prune() for _ in range(4)))
    await pruned_to_the_end(services)

    assert sum(one.rows for one in pruned) % 3 == 0  # each job with all of its ledger
    assert (await left(services), await items(services)) == (set(), 0)


async def test_a_job_that_somebody_has_locked_is_passed_over(services: Services) -> None:
    held, free = await a_job(services, 32), await a_job(services, 31)
    async with services.database.transaction() as session:
        await session.execute(text("SELECT id FROM jobs WHERE id = :id FOR UPDATE"), {"id": held})
        async with asyncio.timeout(4):
            await asyncio.create_task(services.retention.prune())

    assert free not in await left(services)
    assert held in await left(services)


async def test_keys_are_forgotten_when_they_have_expired(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "_KEYS_PER_BATCH", 2)
    for number in range(5):
        await a_key(services, f"old-{number}", "-1 second")
    await a_key(services, "valid", "1 hour")

    assert await services.retention.prune() == Pruned(5, more=False)
    assert await sql(services, "SELECT key FROM idempotency_keys") == [("valid",)]


async def test_jobs_are_kept_for_as_long_as_it_is_set(services: Services) -> None:
    await a_job(services, 31)
    patient = Retention(services.database, clear_ledgers, days=32)

    assert await patient.prune() == Pruned(0, more=False)
    assert services.settings.keep_jobs_days == 30


async def test_expired_jobs_are_found_by_their_index(services: Services) -> None:
    statement = str(retention_module._expired(services.retention._age).order_by(text("finished_at")).limit(1))
    statement = statement.replace(":param_1", "interval '30 days'").replace(":param_2", "1")
    statement = statement.replace("(__[POSTCOMPILE_status_1])", "('queued', 'running')")
    async with services.database.transaction() as session:
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join(row[0] for row in await session.execute(text(f"EXPLAIN {statement}")))

    assert "jobs_ended" in plan


async def test_a_ledger_has_nothing_but_its_own_entries_struck_off(services: Services) -> None:
    one, other = await a_job(services, 31), await a_job(services, 31)
    for job_id in (one, other):
        await a_ledger(services, job_id, 3)
    async with services.database.transaction() as session:
        counts = [await clear_ledgers(session, [one], 2) for _ in range(3)]

    assert counts == [2, 1, 0]
    assert await sql(services, "SELECT DISTINCT job_id, status FROM job_items") == [(other, ItemStatus.FAILED)]
