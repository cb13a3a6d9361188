"""One bulk job over several worker processes: as many at once as was asked for, over all of them, whoever is lost."""

import asyncio
import signal
from pathlib import Path
from uuid import UUID

from sqlalchemy import text

from domain.bulk.expand.policy import BulkExpandRequest, GrowthPolicy
from domain.jobs.model import Job
from domain.services import Services
from tests.acceptance import journal
from tests.acceptance.cluster import Cluster
from tests.acceptance.waiting import PATIENCE, ended, exit_code
from tests.support.bulk import MIB, add_volumes, adds_up, most_at_once
from tests.support.forked import Process

BY_ONE = GrowthPolicy(by=MIB)
WORKERS = 3


def start_fleet(cluster: Cluster, **options: object) -> list[Process]:
    """Workers that have three slots each, so that no two of them can have all lanes of a bulk job."""
    given = "&".join(f"{name}={value}" for name, value in ({"journal": cluster.journal} | options).items())
    return [cluster.start_worker(url=f"faulty+null:?{given}", CISTERN_MAX_JOBS="3") for _ in range(WORKERS)]


async def begun(path: Path, number: int) -> None:
    """Wait until so many operations have been begun."""
    async with asyncio.timeout(PATIENCE):
        while sum(entry.event == "begun" for entry in journal.read(path)) < number:
            await asyncio.sleep(0.02)


def taken(path: Path) -> set[tuple[UUID, int]]:
    """Each time that a volume was taken for growing: its version in the fence says which."""
    return {(entry.volume_id, entry.fence[0]) for entry in journal.read(path) if entry.event == "published"}


async def sizes(services: Services) -> dict[tuple[str, int], int]:
    async with services.database.transaction() as session:
        rows = await session.execute(text("SELECT state, size, count(*) FROM volumes GROUP BY 1, 2"))
        return {(row[0], row[1]): row[2] for row in rows}


async def bulk(services: Services, at_once: int) -> Job:
    return await services.expansion.request_expand(BulkExpandRequest(BY_ONE, max_concurrent=at_once))


async def test_twelve_at_once_are_twelve_over_all_workers(cluster: Cluster, services: Services) -> None:
    await add_volumes(services, 600, backend="local")
    cluster.gate().touch()
    start_fleet(cluster, gate=cluster.gate())
    job = await bulk(services, 12)
    await begun(cluster.journal, 12)  # nobody comes past the gate, so these are at work at the same time
    cluster.gate().unlink()
    async with services.watcher.watching():
        job = await ended(services, job.id)

    entries = journal.read(cluster.journal)
    assert (job.status, job.succeeded) == ("succeeded", 600)
    assert most_at_once(entries) == 12
    assert len({entry.pid for entry in entries}) == WORKERS
    assert len(taken(cluster.journal)) == 600


async def test_one_worker_killed_and_another_stopped_in_the_middle_cost_nothing_but_time(
    cluster: Cluster, services: Services
) -> None:
    await add_volumes(services, 5000, backend="local")
    killed, stopped, _ = start_fleet(cluster, delay_ms=2)
    job = await bulk(services, 24)
    await begun(cluster.journal, 500)
    killed.send_signal(signal.SIGKILL)
    await begun(cluster.journal, 1000)
    stopped.send_signal(signal.SIGTERM)

    assert await exit_code(stopped) == 0
    async with services.watcher.watching():
        job = await ended(services, job.id)
    assert (job.status, job.total, adds_up(job)) == ("succeeded", 5000, True)
    assert await sizes(services) == {("available", 2 * MIB): 5000}
    assert len(taken(cluster.journal)) == 5000, (
        "each was taken once; what a dead worker had begun was brought to its end"
    )
