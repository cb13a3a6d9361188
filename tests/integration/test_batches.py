"""Jobs that are claimed or settled in one batch: a failure of one does not affect the others."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from sqlalchemy import text

from domain.db.base import DEFAULT_PROJECT
from domain.db.database import SERVER_SETTINGS
from domain.errors import DatabaseUnavailable
from domain.jobs.attempt import ClaimedJob, Succeeded
from domain.jobs.engine import Claim, JobEngine
from domain.jobs.model import Job, JobMessage
from domain.services import Services, open_services
from domain.settings import Settings
from tests.integration.job_builders import MIB, a_queued_expand, an_engine, queued_jobs, row, sql, until


async def some_jobs(services: Services, count: int = 6) -> list[Job]:
    return [await a_queued_expand(services) for _ in range(count)]


async def claimed(engine: JobEngine, jobs: list[Job]) -> list[Claim]:
    claims = await asyncio.gather(*(engine.claim(job.message) for job in jobs))
    return [claim for claim in claims if claim is not None]


def expanded(job: ClaimedJob) -> Succeeded:
    return Succeeded({"volume_id": str(job.volume_id), "size": 2 * MIB})


@asynccontextmanager
async def locked(services: Services, table: str, row_id: UUID | None) -> AsyncIterator[None]:
    """Hold the lock of a row in another transaction while the block runs."""
    async with services.database.transaction() as session:
        await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await session.execute(text(f"SELECT id FROM {table} WHERE id = :id FOR UPDATE"), {"id": row_id})
        yield


async def statuses(services: Services, jobs: list[Job]) -> list[str]:
    return [(await row(services, job.id)).status for job in jobs]


async def test_concurrent_claims_are_one_transaction(services: Services) -> None:
    jobs = await some_jobs(services)
    claims = await claimed(an_engine(services), jobs)
    writers = await sql(services, "SELECT DISTINCT xmin FROM jobs")

    assert [claim.job.id for claim in claims] == [job.id for job in jobs]
    assert len(writers) == 1


async def test_locked_row_delays_only_its_own_claim(services: Services) -> None:
    jobs, engine = await some_jobs(services), an_engine(services)
    async with locked(services, "jobs", jobs[2].id):
        claims = [asyncio.create_task(engine.claim(job.message)) for job in jobs]
        others = await asyncio.gather(*claims[:2], *claims[3:])
        late = (await asyncio.gather(claims[2], return_exceptions=True))[0]

    assert [claim.job.id for claim in others if claim] == [job.id for job in jobs if job is not jobs[2]]
    assert isinstance(late, DatabaseUnavailable)
    assert (await row(services, jobs[2].id)).status == "queued"


async def test_briefly_locked_row_is_claimed_once_unlocked(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domain.jobs.engine._LOCK_TIMEOUT", 20.0)
    (job,), engine = await some_jobs(services, 1), an_engine(services)
    async with locked(services, "jobs", job.id):
        claim = asyncio.create_task(engine.claim(job.message))
        await until(lambda: any_waits_for_a_lock(services))

    assert await claim is not None


async def any_waits_for_a_lock(services: Services) -> bool:
    return bool(await sql(services, "SELECT 1 FROM pg_locks WHERE NOT granted"))


async def test_message_delivered_twice_at_once_gets_one_claim(services: Services) -> None:
    (job,) = await some_jobs(services, 1)
    engine = an_engine(services)
    claims = await asyncio.gather(engine.claim(job.message), engine.claim(job.message))

    assert [claim is None for claim in claims] == [False, True]


async def test_attempt_that_cannot_be_settled_does_not_affect_the_others(services: Services) -> None:
    jobs, engine = await some_jobs(services), an_engine(services)
    claims = await claimed(engine, jobs)
    await sql(services, "UPDATE volumes SET job_id = NULL, state = 'available' WHERE id = :id", id=jobs[3].volume_id)
    settling = (engine.settle(claim.job, expanded(claim.job)) for claim in claims)
    results = await asyncio.gather(*settling, return_exceptions=True)

    assert isinstance(results[3], RuntimeError)
    assert await statuses(services, jobs) == ["running" if number == 3 else "succeeded" for number in range(6)]


async def test_locked_volume_delays_only_its_own_job(services: Services) -> None:
    jobs, engine = await some_jobs(services), an_engine(services)
    claims = await claimed(engine, jobs)
    async with locked(services, "volumes", jobs[0].volume_id):
        first, *others = [asyncio.create_task(engine.settle(claim.job, expanded(claim.job))) for claim in claims]
        assert await asyncio.gather(*others) == [True] * 5
        assert await statuses(services, jobs) == ["running"] + ["succeeded"] * 5
    await asyncio.gather(first, return_exceptions=True)


async def test_effect_that_times_out_does_not_affect_the_others(
    services: Services, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SERVER_SETTINGS, "statement_timeout", "1000")
    async with open_services(settings, adopt=True) as short_timeout:
        jobs, engine = await some_jobs(services), an_engine(short_timeout)
        claims = await claimed(engine, jobs)
        await sql(services, SLOW.format(volume_id=jobs[3].volume_id))
        await sql(services, "CREATE TRIGGER slow BEFORE UPDATE ON volumes FOR EACH ROW EXECUTE FUNCTION slow()")
        settling = (engine.settle(claim.job, expanded(claim.job)) for claim in claims)
        results = await asyncio.gather(*settling, return_exceptions=True)

    assert isinstance(results[3], DatabaseUnavailable)
    assert await statuses(services, jobs) == ["running" if number == 3 else "succeeded" for number in range(6)]


SLOW = """
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.id = '{volume_id}' THEN PERFORM pg_sleep(3600); END IF;
        RETURN NEW;
    END $$
"""


async def test_single_settlement_of_a_locked_row_times_out_too(
    services: Services, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("lock_timeout", "statement_timeout"):
        monkeypatch.setitem(SERVER_SETTINGS, limit, "3600000")
    async with asyncio.timeout(30), open_services(settings, adopt=True) as long_timeout:
        (job,), engine = await some_jobs(services, 1), an_engine(long_timeout)
        (claim,) = await claimed(engine, [job])
        async with locked(services, "volumes", job.volume_id):
            with pytest.raises(DatabaseUnavailable):
                await engine.settle(claim.job, expanded(claim.job))

        assert await engine.settle(claim.job, expanded(claim.job))


async def test_reads_of_a_locked_table_fail_as_one_batch(
    services: Services, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SERVER_SETTINGS, "lock_timeout", "200")
    jobs = await some_jobs(services)
    async with open_services(settings, adopt=True) as short_timeout, services.database.transaction() as session:
        batches: list[int] = []
        read_batch = short_timeout.jobs._read_batch

        async def counted(job_ids: Sequence[UUID]) -> Sequence[Job | None]:
            batches.append(len(job_ids))
            return await read_batch(job_ids)

        monkeypatch.setattr(short_timeout.jobs._reads, "_send", counted)
        await session.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        results = await asyncio.gather(
            *(short_timeout.jobs.get(job.id, project_id=DEFAULT_PROJECT) for job in jobs), return_exceptions=True
        )

    assert [type(result) for result in results] == [DatabaseUnavailable] * 6
    assert batches == [6]


async def test_concurrent_batches_of_claims_do_not_deadlock(services: Services) -> None:
    await queued_jobs(services, 400)
    await sql(services, "ANALYZE jobs")  # most rows of a small table: PostgreSQL would prefer a sequential scan
    ids = sorted(found.id for found in await sql(services, "SELECT id FROM jobs"))
    engines = [an_engine(services) for _ in range(4)]
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = await sql(services, deadlocks)
    claims = await asyncio.gather(*(engine.claim(JobMessage(job_id, 0)) for engine in engines for job_id in ids))

    assert sum(claim is not None for claim in claims) == 400
    assert await sql(services, deadlocks) == before


async def test_column_added_by_a_newer_version_does_not_break_claims(services: Services) -> None:
    engine = an_engine(services)
    for job in await some_jobs(services, 3):
        assert await engine.claim(job.message) is not None
    await sql(services, "ALTER TABLE jobs ADD COLUMN newer text")
    (job,) = await some_jobs(services, 1)

    assert await engine.claim(job.message) is not None
