"""A job that cannot be processed does not keep others from being rescued, failed or given new lanes."""

from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.bulk.ledger import Ledger
from domain.errors import DatabaseUnavailable
from domain.jobs import maintenance as maintenance_module
from domain.jobs.attempt import ClaimedJob, Delegated
from domain.jobs.kinds import FailedJobs
from domain.jobs.model import Job
from domain.jobs.store.orphans import EXTRA_CLAIMS
from domain.operation_handler import OperationHandler
from domain.services import Services
from domain.storage.context import Fence, Grant
from tests.integration.job_builders import an_engine, row, run_out, set_job, sql, volume_row
from tests.integration.test_rescue import a_running_expand
from tests.support.bulk import MIB, add_volumes

EXHAUSTED = f"attempt = max_attempts + {EXTRA_CLAIMS}"


async def exhausted_orphans(services: Services, count: int) -> list[ClaimedJob]:
    """Return orphans without claims left, in the order of their expiry."""
    jobs = [await a_running_expand(services, an_engine(services)) for _ in range(count)]
    for number, job in enumerate(jobs):
        await set_job(services, job.id, EXHAUSTED)
        await set_job(services, job.id, f"lease_expires_at = now() - interval '{count - number} seconds'")
    return jobs


def poison(monkeypatch: pytest.MonkeyPatch, volume_id: UUID | None, error: Exception) -> None:
    """Make abandoning the expansion of one volume raise, after it has written its changes."""
    abandon = OperationHandler.abandon

    async def poisoned(self: OperationHandler, session: AsyncSession, failed: FailedJobs) -> None:
        await abandon(self, session, failed)
        if failed[0][0].volume_id == volume_id:
            raise error

    monkeypatch.setattr(OperationHandler, "abandon", poisoned)


@pytest.mark.parametrize("error", [ValueError("a bug"), DatabaseUnavailable("its volume is locked")])
async def test_orphan_that_cannot_be_failed_does_not_block_the_others(
    services: Services, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    first, poisoned, last = await exhausted_orphans(services, 3)
    orphan = await a_running_expand(services, an_engine(services))
    await run_out(services, orphan.id)
    poison(monkeypatch, poisoned.volume_id, error)

    assert await an_engine(services).maintenance.rescue() == 3
    assert [(await row(services, job.id)).status for job in (first, last, orphan)] == ["failed", "failed", "queued"]


async def test_partial_effects_of_a_failed_abandon_are_rolled_back(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    (poisoned,) = await exhausted_orphans(services, 1)
    poison(monkeypatch, poisoned.volume_id, ValueError("a bug"))
    await an_engine(services).maintenance.rescue()

    volume = await volume_row(services, poisoned.volume_id)
    assert ((await row(services, poisoned.id)).status, volume["state"]) == ("running", "expanding")


async def test_orphan_that_cannot_be_failed_is_deferred_and_tried_again(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance_module, "_PAGE_SIZE", 1)
    poisoned, good = await exhausted_orphans(services, 2)
    with monkeypatch.context() as broken:
        poison(broken, poisoned.volume_id, ValueError("a bug"))
        engine = an_engine(services)

        assert [await engine.maintenance.rescue() for _ in range(3)] == [0, 1, 0]
    await run_out(services, poisoned.id)  # a minute later

    assert await an_engine(services).maintenance.rescue() == 1
    assert {(await row(services, job.id)).status for job in (poisoned, good)} == {"failed"}


async def test_rescue_stops_when_postgresql_is_down(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = await exhausted_orphans(services, 2)
    poison(monkeypatch, jobs[0].volume_id, DatabaseUnavailable())

    async def unavailable() -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(services.database, "ping", unavailable)
    with pytest.raises(DatabaseUnavailable):
        await an_engine(services).maintenance.rescue()

    assert [(await row(services, job.id)).status for job in jobs] == ["running", "running"]


async def a_bulk_job_without_lanes(services: Services) -> Job:
    """Return a bulk job whose lanes have all failed."""
    engine = an_engine(services)
    job = await services.bulk.request(BulkExpandRequest(GrowthPolicy(by=MIB), max_concurrent=1))
    claim = await engine.claim(job.message)
    assert claim is not None
    await services.handlers[job.kind].perform(claim.job, Grant(job.id, Fence(0, 0), claim.deadline))
    await engine.settle(claim.job, Delegated({}))
    await sql(services, "UPDATE jobs SET status = 'failed', finished_at = now() WHERE parent_id = :id", id=job.id)
    return job


async def test_bulk_job_that_cannot_get_lanes_does_not_block_the_others(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_volumes(services, 2, backend="memory")
    poisoned, good = await a_bulk_job_without_lanes(services), await a_bulk_job_without_lanes(services)
    reassign = Ledger.reassign

    async def poisoning(self: Ledger, job_id: UUID, backend: str, lane_id: UUID) -> object:
        if job_id == poisoned.id:
            raise ValueError("a bug")
        return await reassign(self, job_id, backend, lane_id)

    with monkeypatch.context() as broken:
        broken.setattr(Ledger, "reassign", poisoning)

        assert [await services.bulk.assign_lanes() for _ in range(2)] == [1, 0]
    live = text("SELECT parent_id FROM jobs WHERE parent_id IS NOT NULL AND status = 'queued'")
    async with services.database.transaction() as session:
        assert (await session.execute(live)).scalars().all() == [good.id]
    await set_job(services, poisoned.id, "run_at = now()")  # a minute later

    assert await services.bulk.assign_lanes() == 1
