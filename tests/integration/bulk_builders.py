"""Builders and readers of bulk jobs, also in intermediate states that workers pass through too fast to observe."""

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from sqlalchemy import text
from uuid_utils.compat import uuid7

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy, Policy
from domain.bulk.model import Item, ItemStatus
from domain.db.base import DEFAULT_PROJECT
from domain.jobs.attempt import ClaimedJob, Delegated
from domain.jobs.engine import Claim, JobEngine
from domain.jobs.model import Job, Worker
from domain.services import Services
from domain.storage.context import Fence, Grant
from tests.integration.job_builders import sql
from tests.support.bulk import MIB
from worker.main import worker_handlers

BY_ONE = GrowthPolicy(by=MIB)


def an_engine(services: Services) -> JobEngine:
    return services.engine(Worker(id=uuid7(), host="here", pid=1), worker_handlers(services, lambda: 1))


async def planned(services: Services, engine: JobEngine, request: BulkExpandRequest) -> ClaimedJob:
    """A bulk job that is claimed and planned, but not yet delegated to lanes."""
    job = await services.bulk.request(request)
    claim = await engine.claim(job.message)
    assert claim is not None
    await services.handlers[job.kind].perform(claim.job, Grant(job.id, Fence(0, 0), claim.deadline))
    return claim.job


async def lanes_of(services: Services, job: Job | ClaimedJob) -> list[UUID]:
    async with services.database.transaction() as session:
        rows = await session.execute(text("SELECT id FROM jobs WHERE parent_id = :id"), {"id": job.id})
        return [row.id for row in rows]


async def a_claimed_lane(
    services: Services, engine: JobEngine, policy: Policy = BY_ONE, *, epoch: int = 0
) -> tuple[Job, Claim]:
    """A bulk job, and the claim of its only lane, which has reached ``epoch``."""
    parent = await planned(services, engine, BulkExpandRequest(policy, max_concurrent=1))
    await engine.settle(parent, Delegated({}))
    (lane_id,) = await lanes_of(services, parent)
    await sql(services, "UPDATE jobs SET epoch = :epoch WHERE id = :id", epoch=epoch, id=lane_id)
    claim = await engine.claim((await services.jobs.get(lane_id, project_id=DEFAULT_PROJECT)).message)
    assert claim is not None
    return await services.jobs.get(parent.id, project_id=DEFAULT_PROJECT), claim


async def kill_lanes(services: Services, job: Job) -> None:
    async with services.database.transaction() as session:
        await session.execute(
            text(
                "UPDATE jobs SET status = 'failed', finished_at = now(), lease_expires_at = NULL WHERE parent_id = :id"
            ),
            {"id": job.id},
        )


async def items(services: Services, job: Job, status: ItemStatus | None = None) -> dict[UUID, Item]:
    """The items of a job, by volume id."""
    return {
        item.volume_id: item
        for item in await services.bulk.items(job.id, status, after=None, limit=5000, project_id=DEFAULT_PROJECT)
    }


def fail_for(tmp_path: Path, operation: str, volumes: Sequence[UUID]) -> None:
    """Make the storage fail for exactly these volumes from now on."""
    (tmp_path / "new").write_text("".join(f"{operation}:storage-full {volume_id}\n" for volume_id in volumes))
    (tmp_path / "new").rename(tmp_path / "faults")
