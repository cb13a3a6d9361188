"""Old rows are pruned in small batches, by any number of workers at once; rows still needed are kept."""

import asyncio
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text

from domain.bulk.ledger import clear_ledgers
from domain.bulk.model import ItemStatus
from domain.db.base import DEFAULT_PROJECT
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
    """Insert a job that ended ``days`` ago."""
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


async def job_ids(services: Services) -> set[UUID]:
    return {row[0] for row in await sql(services, "SELECT id FROM jobs")}


async def count_items(services: Services) -> int:
    return int((await sql(services, "SELECT count(*) FROM job_items"))[0][0])


async def prune_all(services: Services) -> int:
    """Prune until nothing is left to prune; returns the number of runs."""
    runs = 1
    while (await services.retention.prune()).more:
        runs += 1
    return runs


async def test_old_ended_jobs_are_pruned_and_others_kept(services: Services) -> None:
    for status in ("succeeded", "partial", "failed", "cancelled"):
        await a_job(services, 31, status=status)
    young = await a_job(services, 29)
    live = await a_queued_expand(services)
    await sql(services, "UPDATE jobs SET created_at = now() - interval '1 year'")

    assert await services.retention.prune() == Pruned(4, more=False)
    assert await job_ids(services) == {young, live.id}


async def test_pruned_job_is_not_found(services: Services) -> None:
    job_id = await a_job(services, 31)
    await services.retention.prune()

    with pytest.raises(JobNotFound):
        await services.jobs.get(job_id, project_id=DEFAULT_PROJECT)
    with pytest.raises(JobNotFound):
        await services.bulk.items(job_id, None, after=None, limit=1, project_id=DEFAULT_PROJECT)
    with pytest.raises(JobNotFound):
        await services.jobs.retry(job_id)


async def test_job_is_pruned_with_its_lanes_and_ledger(services: Services) -> None:
    old, young = await a_job(services, 31), await a_job(services, 29)
    for parent in (old, young):
        await a_job(services, 40, status="succeeded", parent=parent)
        await a_ledger(services, parent, 3)
    await services.retention.prune()

    assert len(await job_ids(services)) == 2
    assert await count_items(services) == 3


@pytest.mark.parametrize("status", ["queued", "running"])
async def test_lanes_of_live_jobs_and_jobs_with_live_lanes_are_kept(services: Services, status: str) -> None:
    live = await a_job(services, 0, status=status)
    await a_job(services, 31, parent=live)
    ended = await a_job(services, 31)
    await a_job(services, 0, status=status, parent=ended)
    await services.retention.prune()

    assert len(await job_ids(services)) == 4


async def test_job_is_kept_as_long_as_its_retries(services: Services) -> None:
    """A chain of retries is kept, too: one that ended without a plan refers to the ledger of its predecessor."""
    first = await a_job(services, 90)
    second = await a_job(services, 60, retries=first)
    third = await a_job(services, 0, status="queued", retries=second)
    await a_ledger(services, first, 2)
    await services.retention.prune()
    assert (await job_ids(services), await count_items(services)) == ({first, second, third}, 2)
    await sql(
        services,
        "UPDATE jobs SET status = 'failed', finished_at = now() - interval '40 days' WHERE id = :id",
        id=third,
    )

    for remaining in ({first, second}, {first}, set()):
        await services.retention.prune()
        assert await job_ids(services) == remaining


async def test_retry_added_while_the_job_is_being_locked_prevents_pruning(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry does not change the row of the retried job, so PostgreSQL does not check that row again by itself."""
    job_id = await a_job(services, 31)
    await a_job(services, 0, status="queued", retries=job_id)
    expired = retention_module._expired
    before_the_retry = select(Job.id).where(Job.id == job_id)
    queries = iter([before_the_retry])
    monkeypatch.setattr(retention_module, "_expired", lambda age: next(queries, expired(age)))

    assert await services.retention.prune() == Pruned(0, more=False)
    assert job_id in await job_ids(services)


async def test_long_ledger_is_pruned_in_batches_over_several_runs(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "_ITEMS_PER_BATCH", 10)
    job_id = await a_job(services, 31)
    await a_ledger(services, job_id, 95)

    assert await services.retention.prune() == Pruned(50, more=True)
    assert (await job_ids(services), await count_items(services)) == ({job_id}, 45)
    assert await services.retention.prune() == Pruned(46, more=False)
    assert await job_ids(services) == set()


async def test_job_with_a_partly_pruned_ledger_is_hidden_and_not_retryable(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "_ITEMS_PER_BATCH", 10)
    job_id = await a_job(services, 31)
    await a_ledger(services, job_id, 95)
    await services.retention.prune()
    page = await services.jobs.list_jobs(JobFilter(), PageRequest("jobs", 10), project_id=DEFAULT_PROJECT)

    assert page.items == []
    with pytest.raises(JobNotFound):
        await services.jobs.get(job_id, project_id=DEFAULT_PROJECT)
    with pytest.raises(JobNotFound):
        await services.jobs.retry(job_id)


async def test_jobs_are_pruned_in_batches(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "_JOBS_PER_BATCH", 2)
    for _ in range(25):
        await a_job(services, 31)

    assert await prune_all(services) == 3
    assert await job_ids(services) == set()


async def test_concurrent_prunes_do_not_wait_for_each_other(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "_JOBS_PER_BATCH", 5)
    for _ in range(60):
        await a_ledger(services, await a_job(services, 31), 2)
    runs = await asyncio.gather(*(services.retention.prune() for _ in range(4)))
    await prune_all(services)

    assert sum(pruned.rows for pruned in runs) % 3 == 0  # each job with its whole ledger
    assert (await job_ids(services), await count_items(services)) == (set(), 0)


async def test_locked_job_is_skipped(services: Services) -> None:
    locked, unlocked = await a_job(services, 32), await a_job(services, 31)
    async with services.database.transaction() as session:
        await session.execute(text("SELECT id FROM jobs WHERE id = :id FOR UPDATE"), {"id": locked})
        async with asyncio.timeout(4):
            await asyncio.create_task(services.retention.prune())

    assert unlocked not in await job_ids(services)
    assert locked in await job_ids(services)


async def test_expired_keys_are_pruned(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "_KEYS_PER_BATCH", 2)
    for number in range(5):
        await a_key(services, f"old-{number}", "-1 second")
    await a_key(services, "valid", "1 hour")

    assert await services.retention.prune() == Pruned(5, more=False)
    assert await sql(services, "SELECT key FROM idempotency_keys") == [("valid",)]


async def test_retention_is_configurable(services: Services) -> None:
    await a_job(services, 31)
    retention = Retention(services.database, clear_ledgers, days=32)

    assert await retention.prune() == Pruned(0, more=False)
    assert services.settings.keep_jobs_days == 30


async def test_expired_jobs_are_found_by_an_index(services: Services) -> None:
    statement = str(retention_module._expired(services.retention._age).order_by(text("finished_at")).limit(1))
    statement = statement.replace(":param_1", "interval '30 days'").replace(":param_2", "1")
    statement = statement.replace("(__[POSTCOMPILE_status_1])", "('queued', 'running')")
    async with services.database.transaction() as session:
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join(row[0] for row in await session.execute(text(f"EXPLAIN {statement}")))

    assert "jobs_ended" in plan


async def test_clearing_a_ledger_keeps_the_items_of_other_jobs(services: Services) -> None:
    one, other = await a_job(services, 31), await a_job(services, 31)
    for job_id in (one, other):
        await a_ledger(services, job_id, 3)
    async with services.database.transaction() as session:
        counts = [await clear_ledgers(session, [one], 2) for _ in range(3)]

    assert counts == [2, 1, 0]
    assert await sql(services, "SELECT DISTINCT job_id, status FROM job_items") == [(other, ItemStatus.FAILED)]
