"""A backend without room: the refusal for it comes last, so that nobody can measure for nothing what others have."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from uuid import UUID

import pytest

from domain.errors import (
    BackendOvercommitted,
    NameTaken,
    QuotaExceeded,
    ShrinkRefused,
    SnapshotUnusable,
    VolumeBusy,
)
from domain.jobs.acceptance import IdempotentRequest, RequestOrigin
from domain.jobs.model import Job
from domain.services import Services
from domain.volumes.model import Growth
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, sql
from tests.integration.project_builders import a_project

#: Larger than the backend, smaller than what a project may have.
LARGE, BEYOND_LIMIT = 50 * MIB, 200 * MIB


class Full(NamedTuple):
    """A project with an available volume and a snapshot, on a backend that may promise nothing more."""

    services: Services
    origin: RequestOrigin
    volume_id: UUID
    snapshot_id: UUID

    async def create(self, name: str, size: int = LARGE, *, origin: RequestOrigin | None = None) -> Job:
        return await self.services.volumes.request_create(NewVolume(name, size), origin=origin or self.origin)

    async def expand(self, to: int = LARGE, *, origin: RequestOrigin | None = None) -> Job:
        growth = Growth(to=to)
        return await self.services.volumes.request_expand(self.volume_id, growth, origin=origin or self.origin)

    async def clone(self, name: str, size: int = LARGE) -> Job:
        return await self.services.snapshots.request_clone(self.snapshot_id, NewVolume(name, size), origin=self.origin)

    async def clone_volume(self, name: str, size: int = LARGE) -> Job:
        snapshots, new = self.services.snapshots, NewVolume(name, size)
        return await snapshots.request_clone_of_volume(self.volume_id, new, origin=self.origin)

    def with_key(self, key: str) -> RequestOrigin:
        request = IdempotentRequest(key, "route", "fingerprint", lambda _: (202, {}))
        return RequestOrigin(self.origin.actor, request)


@pytest.fixture
async def full(services: Services) -> Full:
    project = await a_project(services, "one", max_bytes=100 * MIB, max_queued_jobs=5)
    job = await services.volumes.request_create(NewVolume("taken", 2 * MIB), origin=project.origin)
    assert job.volume_id is not None
    await _end_jobs(services)
    taken = await services.snapshots.request_take(job.volume_id, "one", origin=project.origin)
    assert taken.snapshot_id is not None
    await _end_jobs(services)
    await sql(services, "UPDATE snapshots SET state = 'ready', job_id = NULL")
    await sql(services, "UPDATE backends SET total = 1000000, overcommit = 1, promised = 1000000")
    await services.directory.refresh()
    return Full(services, project.origin, job.volume_id, taken.snapshot_id)


async def _end_jobs(services: Services) -> None:
    await sql(services, "UPDATE volumes SET state = 'available', job_id = NULL")
    await sql(services, "UPDATE jobs SET status = 'succeeded', finished_at = now()")


Request = Callable[[Full], Awaitable[Job]]
ACCEPTABLE: dict[str, Request] = {
    "create": lambda full: full.create("free"),
    "create-with-key": lambda full: full.create("free", origin=full.with_key("k")),
    "expand": lambda full: full.expand(),
    "expand-with-key": lambda full: full.expand(origin=full.with_key("k")),
    "clone": lambda full: full.clone("free"),
    "clone-of-volume": lambda full: full.clone_volume("free"),
}


@pytest.mark.parametrize("request_it", ACCEPTABLE.values(), ids=ACCEPTABLE)
async def test_request_that_nothing_else_refuses_is_refused_for_lack_of_room(full: Full, request_it: Request) -> None:
    with pytest.raises(BackendOvercommitted):
        await request_it(full)

    assert await sql(full.services, "SELECT count(*) FROM jobs WHERE status = 'queued'") == [(0,)]
    assert await sql(full.services, "SELECT count(*), max(growing_to) FROM volumes") == [(1, None)]
    assert await sql(full.services, "SELECT count(*) FROM idempotency_keys") == [(0,)]


BUSY, BROKEN = "UPDATE volumes SET state = 'expanding', job_id = id", "UPDATE snapshots SET state = 'error'"
OTHERWISE_REFUSED: dict[str, tuple[Request, type[Exception], str]] = {
    "create-name": (lambda full: full.create("taken"), NameTaken, ""),
    "create-name-with-key": (lambda full: full.create("taken", origin=full.with_key("k")), NameTaken, ""),
    "create-bytes": (lambda full: full.create("free", BEYOND_LIMIT), QuotaExceeded, ""),
    "expand-busy": (lambda full: full.expand(), VolumeBusy, BUSY),
    "expand-shrink": (lambda full: full.expand(MIB), ShrinkRefused, ""),
    "expand-bytes": (lambda full: full.expand(BEYOND_LIMIT), QuotaExceeded, ""),
    "expand-bytes-with-key": (
        lambda full: full.expand(BEYOND_LIMIT, origin=full.with_key("k")),
        QuotaExceeded,
        "",
    ),
    "clone-name": (lambda full: full.clone("taken"), NameTaken, ""),
    "clone-bytes": (lambda full: full.clone("free", BEYOND_LIMIT), QuotaExceeded, ""),
    "clone-of-volume-name": (lambda full: full.clone_volume("taken"), NameTaken, ""),
    "clone-of-volume-bytes": (lambda full: full.clone_volume("free", BEYOND_LIMIT), QuotaExceeded, ""),
    "clone-of-volume-busy": (lambda full: full.clone_volume("free"), VolumeBusy, BUSY),
    "clone-snapshot": (lambda full: full.clone("free"), SnapshotUnusable, BROKEN),
}


@pytest.mark.parametrize(("request_it", "refusal", "before"), OTHERWISE_REFUSED.values(), ids=OTHERWISE_REFUSED)
async def test_request_that_is_refused_anyway_does_not_say_whether_there_is_room(
    full: Full, request_it: Request, refusal: type[Exception], before: str
) -> None:
    if before:
        await sql(full.services, before)
    with pytest.raises(refusal):
        await request_it(full)


@pytest.mark.parametrize("request_it", ACCEPTABLE.values(), ids=ACCEPTABLE)
async def test_full_queue_does_not_say_whether_there_is_room(full: Full, request_it: Request) -> None:
    await sql(full.services, "UPDATE projects SET max_queued_jobs = 0 WHERE name = 'one'")
    with pytest.raises(QuotaExceeded, match="max_queued_jobs"):
        await request_it(full)


async def test_request_without_room_takes_nothing_from_those_in_its_batch(full: Full) -> None:
    await sql(full.services, f"UPDATE backends SET total = total + {10 * MIB}")
    await full.services.directory.refresh()
    answers = await asyncio.gather(
        full.create("large", 95 * MIB), full.create("small", 8 * MIB), return_exceptions=True
    )

    assert [type(answer) for answer in answers] == [BackendOvercommitted, Job]
