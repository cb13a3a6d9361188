"""Limits of the project in which a test's jobs run: set to exactly what a job needs, and judged when it has ended."""

from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from domain.audit.model import Actor
from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import PageRequest
from domain.errors import QuotaExceeded
from domain.jobs.acceptance import RequestOrigin
from domain.projects.quota import ProjectUsage
from domain.services import Services
from domain.volumes.repository import VolumeFilter
from domain.volumes.service import NewVolume
from tests.acceptance.waiting import ended

#: The origin of requests whose limits count.
LIMITED: Final = RequestOrigin(Actor("owner", project_id=DEFAULT_PROJECT, is_limited=True))


async def allow_only(services: Services, *, volumes: int = 0, size: int = 0, snapshots: int = 0) -> None:
    """Limit the project to what it has, to so many volumes, bytes and snapshots more, and to one queued job."""
    _, used = await services.projects.get(DEFAULT_PROJECT)
    room = ProjectUsage(volumes, size, snapshots, 1)
    limits = {f"max_{name}": getattr(used, name) + getattr(room, name) for name in ProjectUsage._fields}
    await services.projects.change(DEFAULT_PROJECT, limits)


async def assert_limits_add_up(
    services: Services, folder: Path, *, volumes: int = 0, size: int = 0, snapshots: int = 0
) -> None:
    """Assert that what counts is what the backend stores, that this room is left, and that it can be used.

    ``folder`` is the root of the only backend, ``size`` in bytes. A worker must run.
    """
    project, used = await services.projects.get(DEFAULT_PROJECT)
    assert used == _stored(folder), "what counts is not what is stored"
    left = (getattr(project, f"max_{name}") - getattr(used, name) for name in ProjectUsage._fields)
    assert ProjectUsage(*left) == ProjectUsage(volumes, size, snapshots, 1)
    assert [str(finding) async for finding in services.check().findings(Counter())] == []
    await _use(services, volumes=volumes, size=size, snapshots=snapshots)


async def _use(services: Services, *, volumes: int, size: int, snapshots: int) -> None:
    """Use this room, and assert that no other is left."""
    for number in range(volumes):
        new = NewVolume(f"again-{number}", size // volumes)
        job = await services.volumes.request_create(new, origin=LIMITED)
        assert (await ended(services, job.id)).status == "succeeded"
    page = await services.volumes.list_volumes(VolumeFilter(), PageRequest("all"), project_id=DEFAULT_PROJECT)
    volume_id = page.items[0].id
    for number in range(snapshots):
        job = await services.snapshots.request_take(volume_id, f"again-{number}", origin=LIMITED)
        assert (await ended(services, job.id)).status == "succeeded"
    with pytest.raises(QuotaExceeded):
        await services.volumes.request_create(NewVolume("beyond", 4096), origin=LIMITED)
    with pytest.raises(QuotaExceeded):
        await services.snapshots.request_take(volume_id, "beyond", origin=LIMITED)


def _stored(folder: Path) -> ProjectUsage:
    """Return what a file backend stores of volumes that are not deleted."""
    volumes = [path for path in folder.iterdir() if not path.name.startswith(".")]
    size = sum((path / "data").stat().st_size for path in volumes)
    return ProjectUsage(len(volumes), size, sum(1 for path in volumes for _ in path.glob("snapshots/*")), 0)
