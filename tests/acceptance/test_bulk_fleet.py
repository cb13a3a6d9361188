"""One bulk job across several workers: its concurrency limit holds over all, and lost workers cost only time."""

import asyncio
import signal
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.jobs.model import Job
from domain.services import Services
from tests.acceptance import journal
from tests.acceptance.cluster import Cluster
from tests.acceptance.waiting import TIMEOUT_SECONDS, ended, exit_code
from tests.support.bulk import MIB, add_volumes, adds_up, most_at_once
from tests.support.forked import Process

BY_ONE = GrowthPolicy(by=MIB)
WORKERS = 3


def start_fleet(cluster: Cluster, **options: object) -> list[Process]:
    """Start workers with three slots each, so that no two of them can hold all lanes of a bulk job."""
    query = "&".join(f"{name}={value}" for name, value in ({"journal": cluster.journal} | options).items())
    return [cluster.start_worker(url=f"faulty+null:?{query}", CISTERN_MAX_JOBS="3") for _ in range(WORKERS)]


async def wait_until_begun(path: Path, count: int) -> None:
    """Wait until ``count`` operations have begun."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while sum(entry.event == "begun" for entry in journal.read(path)) < count:
            await asyncio.sleep(0.02)


def acquisitions(path: Path) -> set[tuple[UUID, int]]:
    """Return each acquisition of a volume that was published, identified by the version in its fence."""
    return {(entry.volume_id, entry.fence[0]) for entry in journal.read(path) if entry.event == "published"}


async def sizes(services: Services) -> dict[tuple[str, int], int]:
    async with services.database.transaction() as session:
        rows = await session.execute(text("SELECT state, size, count(*) FROM volumes GROUP BY 1, 2"))
        return {(row[0], row[1]): row[2] for row in rows}


async def request_bulk(services: Services, max_concurrent: int) -> Job:
    return await services.bulk.request(BulkExpandRequest(BY_ONE, max_concurrent=max_concurrent))


async def test_concurrency_limit_holds_over_all_workers(cluster: Cluster, services: Services) -> None:
    await add_volumes(services, 600, backend="local")
    cluster.gate().touch()
    start_fleet(cluster, gate=cluster.gate())
    job = await request_bulk(services, 12)
    await wait_until_begun(cluster.journal, 12)  # no operation passes the closed gate, so these run at the same time
    cluster.gate().unlink()
    async with services.watcher.watching():
        job = await ended(services, job.id)

    entries = journal.read(cluster.journal)
    assert (job.status, job.succeeded) == ("succeeded", 600)
    assert most_at_once(entries) == 12
    assert len({entry.pid for entry in entries}) == WORKERS
    assert len(acquisitions(cluster.journal)) == 600


@pytest.mark.slow
async def test_killed_and_stopped_workers_cost_a_bulk_nothing_but_time(cluster: Cluster, services: Services) -> None:
    await add_volumes(services, 5000, backend="local")
    killed, stopped, _ = start_fleet(cluster, delay_ms=2)
    job = await request_bulk(services, 24)
    await wait_until_begun(cluster.journal, 500)
    killed.send_signal(signal.SIGKILL)
    await wait_until_begun(cluster.journal, 1000)
    stopped.send_signal(signal.SIGTERM)

    assert await exit_code(stopped) == 0
    async with services.watcher.watching():
        job = await ended(services, job.id)
    assert (job.status, job.total, adds_up(job)) == ("succeeded", 5000, True)
    assert await sizes(services) == {("available", 2 * MIB): 5000}
    assert len(acquisitions(cluster.journal)) == 5000, (
        "a volume was acquired twice; items begun by a dead worker must be finished, not restarted"
    )
