"""Jobs that are claimed or settled together: what befalls one of them is that one's alone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from sqlalchemy import text

from domain.db.database import _SERVER_SETTINGS
from domain.errors import DatabaseUnavailable
from domain.jobs.claimed import ClaimedJob
from domain.jobs.engine import Claim, JobEngine
from domain.jobs.model import Dispatch, Job
from domain.jobs.outcomes import Succeeded
from domain.services import Services, open_services
from domain.settings import Settings
from tests.integration.job_builders import MIB, a_queued_expand, an_engine, queued_jobs, row, sql, until


async def some_jobs(services: Services, count: int = 6) -> list[Job]:
    return [await a_queued_expand(services) for _ in range(count)]


async def claimed(engine: JobEngine, jobs: list[Job]) -> list[Claim]:
    claims = await asyncio.gather(*(engine.claim(job.dispatch) for job in jobs))
    return [claim for claim in claims if claim is not None]


def done(job: ClaimedJob) -> Succeeded:
    return Succeeded({"volume_id": str(job.volume_id), "size": 2 * MIB})


@asynccontextmanager
async def locked(services: Services, table: str, row_id: UUID | None) -> AsyncIterator[None]:
    """Have somebody hold a row as long as the block lasts."""
    async with services.database.transaction() as session:
        await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await session.execute(text(f"SELECT id FROM {table} WHERE id = :id FOR UPDATE"), {"id": row_id})
        yield


async def statuses(services: Services, jobs: list[Job]) -> list[str]:
    return [(await row(services, job.id)).status for job in jobs]


async def test_what_is_claimed_together_is_one_transaction(services: Services) -> None:
    jobs = await some_jobs(services)
    claims = await claimed(an_engine(services), jobs)
    writers = await sql(services, "SELECT DISTINCT xmin FROM jobs")

    assert [claim.job.id for claim in claims] == [job.id for job in jobs]
    assert len(writers) == 1


async def test_a_row_that_somebody_has_locked_holds_up_only_its_own_claim(services: Services) -> None:
    jobs, engine = await some_jobs(services), an_engine(services)
    async with locked(services, "jobs", jobs[2].id):
        claims = [asyncio.create_task(engine.claim(job.dispatch)) for job in jobs]
        others = await asyncio.gather(*claims[:2], *claims[3:])
        late = (await asyncio.gather(claims[2], return_exceptions=True))[0]

    assert [claim.job.id for claim in others if claim] == [job.id for job in jobs if job is not jobs[2]]
    assert isinstance(late, DatabaseUnavailable)
    assert (await row(services, jobs[2].id)).status == "queued"


async def test_a_row_that_is_locked_for_a_moment_is_claimed_in_the_next(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domain.jobs.engine._PATIENCE", 20.0)
    (job,), engine = await some_jobs(services, 1), an_engine(services)
    async with locked(services, "jobs", job.id):
        claim = asyncio.create_task(engine.claim(job.dispatch))
        await until(lambda: somebody_waits(services))

    assert await claim is not None


async def somebody_waits(services: Services) -> bool:
    """Whether anybody waits for what somebody has locked."""
    return bool(await sql(services, "SELECT 1 FROM pg_locks WHERE NOT granted"))


async def test_a_ring_that_comes_twice_at_the_same_moment_is_answered_once(services: Services) -> None:
    (job,) = await some_jobs(services, 1)
    engine = an_engine(services)
    answers = await asyncio.gather(engine.claim(job.dispatch), engine.claim(job.dispatch))

    assert [answer is None for answer in answers] == [False, True]


async def test_one_that_cannot_be_settled_costs_no_other(services: Services) -> None:
    jobs, engine = await some_jobs(services), an_engine(services)
    claims = await claimed(engine, jobs)
    await sql(services, "UPDATE volumes SET job_id = NULL, state = 'available' WHERE id = :id", id=jobs[3].volume_id)
    settling = (engine.settle(claim.job, done(claim.job)) for claim in claims)
    answers = await asyncio.gather(*settling, return_exceptions=True)

    assert isinstance(answers[3], RuntimeError)
    assert await statuses(services, jobs) == ["running" if number == 3 else "succeeded" for number in range(6)]


async def test_a_volume_that_somebody_has_locked_holds_up_only_its_own_job(services: Services) -> None:
    jobs, engine = await some_jobs(services), an_engine(services)
    claims = await claimed(engine, jobs)
    async with locked(services, "volumes", jobs[0].volume_id):
        first, *others = [asyncio.create_task(engine.settle(claim.job, done(claim.job))) for claim in claims]
        assert await asyncio.gather(*others) == [True] * 5
        assert await statuses(services, jobs) == ["running"] + ["succeeded"] * 5
    await asyncio.gather(first, return_exceptions=True)


async def test_one_whose_effect_takes_too_long_costs_no_other(
    services: Services, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_SERVER_SETTINGS, "statement_timeout", "1000")
    async with open_services(settings) as hasty:
        jobs, engine = await some_jobs(services), an_engine(hasty)
        claims = await claimed(engine, jobs)
        await sql(services, SLOW.format(volume_id=jobs[3].volume_id))
        await sql(services, "CREATE TRIGGER slow BEFORE UPDATE ON volumes FOR EACH ROW EXECUTE FUNCTION slow()")
        settling = (engine.settle(claim.job, done(claim.job)) for claim in claims)
        answers = await asyncio.gather(*settling, return_exceptions=True)

    assert isinstance(answers[3], DatabaseUnavailable)
    assert await statuses(services, jobs) == ["running" if number == 3 else "succeeded" for number in range(6)]


SLOW = """
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.id = '{volume_id}' THEN PERFORM pg_sleep(3600); END IF;
        RETURN NEW;
    END $$
"""


async def test_whoever_is_alone_with_a_locked_row_keeps_nobody_waiting_behind_him_either(
    services: Services, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("lock_timeout", "statement_timeout"):
        monkeypatch.setitem(_SERVER_SETTINGS, limit, "3600000")
    async with asyncio.timeout(30), open_services(settings) as patient:
        (job,), engine = await some_jobs(services, 1), an_engine(patient)
        (claim,) = await claimed(engine, [job])
        async with locked(services, "volumes", job.volume_id):
            with pytest.raises(DatabaseUnavailable):
                await engine.settle(claim.job, done(claim.job))

        assert await engine.settle(claim.job, done(claim.job))


async def test_polls_of_a_table_that_is_locked_fail_together_instead_of_one_after_the_other(
    services: Services, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_SERVER_SETTINGS, "lock_timeout", "200")
    jobs = await some_jobs(services)
    async with open_services(settings) as hasty, services.database.transaction() as session:
        asked: list[int] = []
        read_all = hasty.jobs._read_batch

        async def counted(job_ids: Sequence[UUID]) -> Sequence[Job | None]:
            asked.append(len(job_ids))
            return await read_all(job_ids)

        monkeypatch.setattr(hasty.jobs._reads, "_send", counted)
        await session.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        answers = await asyncio.gather(*(hasty.jobs.get(job.id) for job in jobs), return_exceptions=True)

    assert [type(answer) for answer in answers] == [DatabaseUnavailable] * 6
    assert asked == [6]


async def test_claims_of_many_lock_in_the_order_of_ids_so_that_nobody_waits_for_each_other(services: Services) -> None:
    await queued_jobs(services, 400)
    await sql(services, "ANALYZE jobs")  # many of a small table: PostgreSQL would read it from end to end
    ids = sorted(found.id for found in await sql(services, "SELECT id FROM jobs"))
    engines = [an_engine(services) for _ in range(4)]
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = await sql(services, deadlocks)
    claims = await asyncio.gather(*(engine.claim(Dispatch(job_id, 0)) for engine in engines for job_id in ids))

    assert sum(claim is not None for claim in claims) == 400
    assert await sql(services, deadlocks) == before


async def test_a_column_that_a_newer_version_adds_disturbs_no_worker_of_this_one(services: Services) -> None:
    engine = an_engine(services)
    for job in await some_jobs(services, 3):
        assert await engine.claim(job.dispatch) is not None
    await sql(services, "ALTER TABLE jobs ADD COLUMN newer text")
    (job,) = await some_jobs(services, 1)

    assert await engine.claim(job.dispatch) is not None
