"""Limits of projects: exact whatever happens at once, and given back by every way out."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.bulk.model import ItemStatus
from domain.bulk.snapshot import BulkSnapshotRequest
from domain.errors import QuotaExceeded
from domain.jobs.model import Job
from domain.projects.quota import ProjectUsage, Room, lock_room_if_free, lock_rooms
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import MIB, sql
from tests.integration.project_builders import ProjectOfTest, a_project


async def usage(services: Services, project: ProjectOfTest) -> ProjectUsage:
    return (await services.projects.get(project.id))[1]


async def created(services: Services, project: ProjectOfTest, name: str, size: int = MIB) -> Job:
    return await services.volumes.request_create(NewVolume(name, size), origin=project.origin)


async def available(services: Services, project: ProjectOfTest, name: str = "data", size: int = MIB) -> Job:
    """Create a volume whose job has succeeded."""
    job = await created(services, project, name, size)
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")
    await sql(services, "UPDATE jobs SET status = 'succeeded', finished_at = now()")
    return job


@pytest.mark.parametrize("limits", [{"max_volumes": 50}, {"max_bytes": 50 * MIB}, {"max_queued_jobs": 50}])
async def test_of_six_hundred_creations_at_once_as_many_are_accepted_as_there_is_room_for(
    services: Services, limits: dict[str, int]
) -> None:
    project = await a_project(services, "one", **limits)
    async with open_services(services.settings) as another:  # as of another API process: each batches its own
        answers = await asyncio.gather(
            *(created((services, another)[number % 2], project, f"v{number}") for number in range(600)),
            return_exceptions=True,
        )

    assert Counter(type(answer) for answer in answers) == {Job: 50, QuotaExceeded: 550}
    assert await usage(services, project) == ProjectUsage(50, 50 * MIB, 0, 50)


async def test_names_that_are_taken_take_no_room(services: Services) -> None:
    """In one batch with others."""
    project = await a_project(services, "one", max_volumes=2)
    answers = await asyncio.gather(
        *(created(services, project, name) for name in ("a", "a", "a", "b")), return_exceptions=True
    )

    assert Counter(isinstance(answer, Job) for answer in answers) == {True: 2, False: 2}
    assert (await usage(services, project)).volumes == 2


async def test_other_projects_have_their_own_room(services: Services) -> None:
    one, other = await a_project(services, "one", max_volumes=1), await a_project(services, "other", max_volumes=1)
    await asyncio.gather(created(services, one, "a"), created(services, other, "a"))
    with pytest.raises(QuotaExceeded, match="'max_volumes' leaves room for 0; 1 were requested"):
        await created(services, one, "b")


async def test_growth_counts_from_its_acceptance_on(services: Services) -> None:
    project = await a_project(services, "one", max_bytes=4 * MIB)
    volume_ids = [(await available(services, project, name)).volume_id for name in ("a", "b")]
    growths = [
        services.volumes.request_expand(volume_id, Growth(to=3 * MIB), origin=project.origin)
        for volume_id in volume_ids
        if volume_id is not None
    ]
    answers = await asyncio.gather(*growths, return_exceptions=True)

    assert Counter(type(answer) for answer in answers) == {Job: 1, QuotaExceeded: 1}
    assert (await usage(services, project)).bytes == 4 * MIB


async def test_growth_that_fails_gives_its_bytes_back(services: Services) -> None:
    project = await a_project(services, "one", max_bytes=4 * MIB)
    volume = await available(services, project)
    assert volume.volume_id is not None
    job = await services.volumes.request_expand(volume.volume_id, Growth(to=4 * MIB), origin=project.origin)
    taken = await usage(services, project)
    await services.jobs.cancel(job.id, origin=project.origin)
    after = await usage(services, project)
    await services.jobs.retry(job.id, origin=project.origin)

    assert [taken.bytes, after.bytes, (await usage(services, project)).bytes] == [4 * MIB, MIB, 4 * MIB]


async def test_limit_that_is_lowered_takes_nothing_away(services: Services) -> None:
    project = await a_project(services, "one", max_volumes=5)
    await asyncio.gather(*(created(services, project, name) for name in ("a", "b")))
    await services.projects.change(project.id, {"max_volumes": 1})
    with pytest.raises(QuotaExceeded, match="leaves room for 0"):
        await created(services, project, "c")
    await services.projects.change(project.id, {"max_volumes": None})
    await created(services, project, "c")

    assert (await usage(services, project)).volumes == 3


OTHERS: dict[str, Callable[[Services, ProjectOfTest], Awaitable[Job]]] = {
    "bulk": lambda services, project: services.bulk.request(
        BulkExpandRequest(GrowthPolicy(by=MIB)), origin=project.origin
    ),
    "volume": lambda services, project: created(services, project, "more"),
}


@pytest.mark.parametrize("request_it", OTHERS.values(), ids=OTHERS)
async def test_full_queue_takes_no_job(
    services: Services, request_it: Callable[[Services, ProjectOfTest], Awaitable[Job]]
) -> None:
    project = await a_project(services, "one", max_queued_jobs=1)
    first = await created(services, project, "first")
    with pytest.raises(QuotaExceeded, match="'max_queued_jobs'"):
        await request_it(services, project)
    await services.jobs.cancel(first.id, origin=project.origin)

    await request_it(services, project)


async def test_bulk_job_grows_as_many_volumes_as_there_is_room_for(
    services: Services, settings: Settings, running_worker: RunningWorker
) -> None:
    project = await a_project(services, "one", max_bytes=13 * MIB, max_snapshots=4)
    async with services.watcher.watching(), running_worker(settings):
        for number in range(10):
            job = await created(services, project, f"v{number}")
            await services.watcher.ended(job.id, 30)
        grown = await services.bulk.request(BulkExpandRequest(GrowthPolicy(by=MIB)), origin=project.origin)
        taken = await services.bulk.request(BulkSnapshotRequest("daily"), origin=project.origin)
        for job in (grown, taken):
            await services.watcher.ended(job.id, 60)

    assert await codes(services, project, grown) == {"expanded": 3, "quota-exceeded": 7}
    assert (await codes(services, project, taken))["quota-exceeded"] >= 6
    assert (await usage(services, project)) == ProjectUsage(10, 13 * MIB, 4, 0)


async def codes(services: Services, project: ProjectOfTest, job: Job) -> Counter[str]:
    """Count the codes of a bulk job's items."""
    items = await services.bulk.items(job.id, None, project_id=project.id, after=None, limit=100)
    assert all(item.status is ItemStatus.FAILED for item in items if item.code == "quota-exceeded")
    return Counter(item.code or "" for item in items)


async def test_locked_project_keeps_no_other_waiting(services: Services) -> None:
    """Each request of a project with limits waits for its row; those of others are not in its batch."""
    one, other = await a_project(services, "one", max_volumes=9), await a_project(services, "other", max_volumes=9)
    volume = (await available(services, other)).volume_id
    assert volume is not None
    async with services.database.transaction() as session:
        await lock_rooms(session, [one.id])
        waiting = asyncio.create_task(created(services, one, "waits"))
        async with asyncio.timeout(5):
            await asyncio.gather(
                asyncio.create_task(created(services, other, "another")),
                asyncio.create_task(services.volumes.request_create(NewVolume("of-nobody", MIB))),
                asyncio.create_task(services.volumes.request_expand(volume, Growth(by=MIB), origin=other.origin)),
            )
            assert await asyncio.create_task(room_if_free(services, one)) is None
        assert not waiting.done()

    await waiting


async def room_if_free(services: Services, project: ProjectOfTest) -> Room | None:
    """Do what a sweep does before it starts the run of a schedule."""
    async with services.database.transaction() as session:
        return await lock_room_if_free(session, project.id)
