"""Shared by the tests of bulk jobs: many volumes at once, and evaluation of the operation journal."""

from collections.abc import Sequence
from uuid import UUID

from uuid_utils.compat import uuid7

from domain.db.base import DEFAULT_PROJECT
from domain.jobs.model import Job
from domain.operations import VolumeState
from domain.services import Services
from domain.volumes.model import Volume
from tests.acceptance.journal import Entry

MIB = 1 << 20


async def add_volumes(
    services: Services, count: int, *, backend: str, size: int = MIB, **columns: object
) -> list[UUID]:
    """Insert volumes directly into the table, available unless ``columns`` say otherwise."""
    volumes = [
        Volume(
            id=uuid7(),
            name=f"bulk-{number}",
            backend=backend,
            size=size,
            version=1,
            **({"state": VolumeState.AVAILABLE, "labels": {}} | columns),
            project_id=DEFAULT_PROJECT,
        )
        for number in range(count)
    ]
    async with services.database.transaction() as session:
        session.add_all(volumes)
    return [volume.id for volume in volumes]


async def ended(services: Services, job: Job, seconds: float = 180) -> Job:
    """Wait until the job has ended, and return it."""
    await services.watcher.ended(job.id, seconds)
    job = await services.jobs.get(job.id, project_id=DEFAULT_PROJECT)
    assert job.ended, f"{job.kind} is still {job.status} after {seconds} s: {job.succeeded} of {job.total}"
    return job


def adds_up(job: Job) -> bool:
    return (job.succeeded or 0) + (job.failed or 0) + (job.skipped or 0) == job.total


def most_at_once(entries: Sequence[Entry], operation: str = "expand") -> int:
    """Return the maximum number of operations that were in progress at the same time."""
    level = highest = 0
    for entry in sorted(entries, key=lambda entry: entry.at):
        if entry.operation == operation:
            level += 1 if entry.event == "begun" else -1
            highest = max(highest, level)
    return highest
